# The filter as an OCI image in the form that Istio reads: one layer with plugin.wasm at its root.
#   make build && docker build -f manifests/images/filter.Dockerfile -t REGISTRY/isthmus/filter:VERSION bin
FROM scratch
COPY isthmus.wasm /plugin.wasm
