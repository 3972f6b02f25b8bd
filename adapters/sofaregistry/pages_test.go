package sofaregistry

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/sessiontest"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

// look looks at the pages once and returns what is listed, as id=number of session servers, or id=data.
func look(t *testing.T, p *pages, known map[string]*page) (string, listing) {
	t.Helper()
	p.refresh(t.Context(), known)
	l := p.combine(known)
	var out []string
	for _, source := range slices.Sorted(maps.Keys(l.ids)) {
		e := l.ids[source]
		text := fmt.Sprintf("%s=%d", e.id.DataID, len(e.servers))
		if e.data {
			text += "+data"
		}
		out = append(out, text)
	}
	return strings.Join(out, " "), l
}

// TestUnion: what is listed is what any of the servers lists; one that fails keeps its last word; one that never answered is waited for,
// but not for ever.
func TestUnion(t *testing.T) {
	a, b := sessiontest.Start(t), sessiontest.Start(t)
	b.Version = 5
	publish(a, adapterstest.P("demo.A", 1), adapterstest.P("demo.Both", 1))
	publish(b, adapterstest.P("demo.B", 1), adapterstest.P("demo.Both", 2))
	b.Subscribe(sessiontest.IDOf("demo.Wanted", "1.0", ""), sessiontest.Subscription{Application: "shop", Address: "192.0.2.77"})
	b.Subscribe(wire.ID{DataID: "x", Group: "OTHER", InstanceID: "i"}, sessiontest.Subscription{})
	s := Settings{Servers: []string{a.Address(), b.Address()}, DataHTTPPort: uint16(a.DataPort()), ConnectTimeout: time.Second}.withDefaults()
	p := newPages(&s)
	defer p.close()
	known := map[string]*page{}
	const all = "demo.A:1.0.0@DEFAULT=1+data demo.B:1.0.0@DEFAULT=1 demo.Both:1.0.0@DEFAULT=2+data demo.Wanted:1.0@DEFAULT=1"
	if got, l := look(t, p, known); got != all || !l.complete || l.err != nil || len(l.problems) > 0 {
		t.Errorf("listed are %s, %+v", got, l)
	}
	b.Refuse(true)
	for n := range giveUp + 1 {
		got, l := look(t, p, known)
		if got != all || !l.complete || l.err != nil || len(l.problems) != min(max(n-1, 0), 1) {
			t.Errorf("failure %d: listed are %s, %+v", n+1, got, l)
		}
	}
	b.Refuse(false)
	b.Unsubscribe(sessiontest.IDOf("demo.Wanted", "1.0", ""), sessiontest.Subscription{Application: "shop", Address: "192.0.2.77"})
	if got, l := look(t, p, known); got != strings.ReplaceAll(all, " demo.Wanted:1.0@DEFAULT=1", "") || len(l.problems) > 0 {
		t.Errorf("when it is back: listed are %s, %+v", got, l.problems)
	}

	b.Refuse(true)
	fresh := map[string]*page{b.Address(): {address: b.Address()}}
	for n := range giveUp {
		if _, l := look(t, p, fresh); l.complete != (n == giveUp-1) || l.err != nil {
			t.Errorf("look %d at a server that never answered: complete %v, %v", n+1, l.complete, l.err)
		}
	}
	a.Refuse(true)
	if _, l := look(t, p, map[string]*page{}); l.complete || l.err == nil {
		t.Errorf("none answers: %+v", l)
	}
}

// TestBadPages: what pages say that is none is an error, and nothing is taken of it.
func TestBadPages(t *testing.T) {
	answers := map[string]string{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := answers[r.URL.Path]
		switch {
		case !ok:
			http.NotFound(w, r)
		case text == "redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		default:
			fmt.Fprint(w, text)
		}
	}))
	defer server.Close()
	address := server.Listener.Addr().String()
	s := Settings{Servers: []string{address}, ConnectTimeout: time.Second}.withDefaults()
	p := newPages(&s)
	defer p.close()
	for name, c := range map[string]struct {
		ids  string
		want string
		err  bool
	}{
		"good":                        {`["demo.A:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA"]`, "demo.A:1.0@DEFAULT=1", false},
		"odd ids":                     {`["", "a", "a#@#b", "a#@#b#@#c", "a#@#b#@#SOFA", "` + strings.Repeat("x", maxIDLength) + `#@#b#@#SOFA"]`, "a=1", false},
		"no JSON":                     {"<html>", "", true},
		"another shape":               {`{"a": 1}`, "", true},
		"a redirect":                  {"redirect", "", true},
		"empty":                       {"", "", true},
		"broken off":                  {`["demo.A:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA"`, "", true},
		"characters that no text has": {"[\"demo.\xff:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA\"]", "demo.\ufffd:1.0@DEFAULT=1", false},
	} {
		answers = map[string]string{"/api/servers/query": "127.0.0.1:9600;rubbish;:1", "/digest/data/serverList/query": "[]", "/digest/checkSumDataInfoIdList": "1",
			"/digest/data/count": "Subscriber count: many", "/digest/getDataInfoIdList": c.ids}
		got, l := look(t, p, map[string]*page{})
		if got != c.want || (l.err != nil) != c.err {
			t.Errorf("%s: %s, %v", name, got, l.err)
		}
	}
	for body, want := range map[string]string{
		`{"SUB": [{"appName": "a", "processId": "192.0.2.1:5"}, {"appName": "b", "sourceAddress": {"ipAddress": "192.0.2.2"}}, {}]}`: "[{192.0.2.1 a  } {192.0.2.2 b  } {   }]",
		`{}`:            "[]",
		`{"SUB": 1}`:    "error",
		`{"SUB": null}`: "[]",
	} {
		answers = map[string]string{"/digest/sub/data/query": body}
		list, err := p.subscribersOf(t.Context(), address, "x")
		got := fmt.Sprint(list)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
}
