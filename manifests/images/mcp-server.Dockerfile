# The image of mcp-server. Build from a folder that holds what `make build` leaves in bin/:
#   make build && docker build -f manifests/images/mcp-server.Dockerfile -t REGISTRY/isthmus/mcp-server:VERSION bin
# Nothing is in it but our programs: mcp-server needs neither a shell nor certificates of the distribution.
FROM scratch
COPY mcp-server isthmusctl /
USER 65532:65532
ENTRYPOINT ["/mcp-server"]
