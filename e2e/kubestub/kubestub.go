// Package kubestub is a Kubernetes API server that holds nothing: every list is empty, apart from a few namespaces, every
// watch stays silent, every other read is "not found" and every write is forbidden. It is what istiod needs to start
// where nothing of Kubernetes is wanted: istiod insists on a client, but is content to find nothing.
package kubestub

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Server answers istiod's requests.
type Server struct {
	// Namespaces are those that exist.
	Namespaces []string
}

// object is any of Kubernetes' objects.
type object = map[string]any

// ServeHTTP implements http.Handler.
func (s Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/version":
		answer(w, http.StatusOK, object{"major": "1", "minor": "35", "gitVersion": "v1.35.0", "platform": "linux/amd64"})
		return
	case "/api":
		answer(w, http.StatusOK, object{"kind": "APIVersions", "versions": []string{"v1"}})
		return
	case "/apis":
		answer(w, http.StatusOK, object{"kind": "APIGroupList", "apiVersion": "v1", "groups": []any{}})
		return
	}
	groupVersion, resource, ok := parsePath(r.URL.Path)
	switch {
	case !ok:
		fail(w, http.StatusNotFound, "NotFound")
	case r.Method != http.MethodGet:
		fail(w, http.StatusForbidden, "Forbidden")
	case len(resource) == 0:
		answer(w, http.StatusOK, object{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": groupVersion, "resources": []any{}})
	case len(resource) > 1: // one object by its name
		fail(w, http.StatusNotFound, "NotFound")
	case r.URL.Query().Get("watch") == "true" || r.URL.Query().Get("watch") == "1":
		watch(w, r)
	default:
		s.list(w, r, groupVersion, resource[0])
	}
}

// parsePath takes apart /api/VERSION/… and /apis/GROUP/VERSION/…; what is left is the resource and perhaps a name. The
// namespace of a namespaced resource is left out: all are empty.
func parsePath(path string) (groupVersion string, resource []string, ok bool) {
	p := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case p[0] == "api" && len(p) >= 2:
		groupVersion, resource = p[1], p[2:]
	case p[0] == "apis" && len(p) >= 3:
		groupVersion, resource = p[1]+"/"+p[2], p[3:]
	default:
		return "", nil, false
	}
	if len(resource) > 2 && resource[0] == "namespaces" {
		resource = resource[2:]
	}
	return groupVersion, resource, true
}

// watch never has anything to say. A client that wants the watch to begin with the list is told that this server is too
// old for that; it then lists first.
func watch(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		fail(w, http.StatusUnprocessableEntity, "Invalid")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush() // without it the client would wait for the headers
	<-r.Context().Done()
}

// list answers with an empty list, or the namespaces.
func (s Server) list(w http.ResponseWriter, r *http.Request, groupVersion, resource string) {
	items := []any{}
	if groupVersion == "v1" && resource == "namespaces" {
		for _, n := range s.Namespaces {
			items = append(items, object{"metadata": object{"name": n, "resourceVersion": "1", "uid": "namespace-" + n}})
		}
	}
	list := object{"metadata": object{"resourceVersion": "1"}, "items": items}
	switch {
	case strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadataList"):
		list["kind"], list["apiVersion"] = "PartialObjectMetadataList", "meta.k8s.io/v1"
	case resource == "namespaces":
		list["kind"], list["apiVersion"] = "NamespaceList", groupVersion
	}
	// A list of another kind is sent without its name: the client knows what it has asked for.
	answer(w, http.StatusOK, list)
}

func fail(w http.ResponseWriter, code int, reason string) {
	answer(w, code, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason, "metadata": object{}})
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client has gone: nobody to tell
}

// Kubeconfig is the configuration file of a client of the server at url, such as http://192.0.2.1:8001.
func Kubeconfig(url string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: stub, cluster: {server: %q}}]
users: [{name: stub, user: {}}]
contexts: [{name: stub, context: {cluster: stub, user: stub}}]
current-context: stub
`, url)
}
