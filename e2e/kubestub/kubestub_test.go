package kubestub

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestServer(t *testing.T) {
	const partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"
	s := httptest.NewServer(Server{Namespaces: []string{"istio-system", "default"}})
	defer s.Close()
	for name, c := range map[string]struct {
		method, path, accept string
		code                 int
		want                 []string // parts of the body
	}{
		"version":              {"GET", "/version", "", 200, []string{`"minor":"35"`}},
		"versions":             {"GET", "/api", "", 200, []string{`"versions":["v1"]`}},
		"groups":               {"GET", "/apis", "", 200, []string{`"groups":[]`}},
		"resources of a group": {"GET", "/apis/networking.istio.io/v1", "", 200, []string{`"groupVersion":"networking.istio.io/v1"`, `"resources":[]`}},
		"namespaces":           {"GET", "/api/v1/namespaces?limit=500", "", 200, []string{`"kind":"NamespaceList"`, `"name":"istio-system"`, `"name":"default"`}},
		"a namespaced list":    {"GET", "/api/v1/namespaces/default/secrets", "", 200, []string{`"items":[]`, `"resourceVersion":"1"`}},
		"a list of a group":    {"GET", "/apis/apps/v1/deployments", "", 200, []string{`"items":[]`}},
		"a list of metadata":   {"GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", partial, 200, []string{`"kind":"PartialObjectMetadataList"`, `"items":[]`}},
		"an object":            {"GET", "/api/v1/namespaces/default/configmaps/a", "", 404, []string{`"reason":"NotFound"`}},
		"a namespace":          {"GET", "/api/v1/namespaces/default", "", 404, []string{`"kind":"Status"`}},
		"a write":              {"POST", "/api/v1/namespaces/default/configmaps", "", 403, []string{`"reason":"Forbidden"`}},
		"a watch with a list":  {"GET", "/api/v1/pods?watch=true&sendInitialEvents=true", "", 422, []string{`"reason":"Invalid"`}},
		"nothing known":        {"GET", "/metrics", "", 404, nil},
		"half a path":          {"GET", "/apis/apps", "", 404, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequest(c.method, s.URL+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Accept", c.accept)
			a, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Body.Close()
			b, err := io.ReadAll(a.Body)
			if err != nil || a.StatusCode != c.code || !json.Valid(b) {
				t.Fatalf("got %d %v, want %d, and JSON: %s", a.StatusCode, err, c.code, b)
			}
			for _, want := range c.want {
				if !strings.Contains(string(b), want) {
					t.Errorf("no %s in %s", want, b)
				}
			}
		})
	}
}

// TestWatch wants the headers of a watch at once and its end with the client.
func TestWatch(t *testing.T) {
	s := httptest.NewServer(Server{})
	defer s.Close() // waits for open requests: hangs if the watch does not end
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/api/v1/pods?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		t.Errorf("got %s", a.Status)
	}
	cancel()
	if b, err := io.ReadAll(a.Body); err == nil || len(b) > 0 {
		t.Errorf("the watch said %q, %v", b, err)
	}
}
