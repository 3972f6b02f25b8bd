// Package console is the JSON API over what mcp-server knows, with its health checks and metrics. All of it reads, but for the rules,
// which can be written where that is safe. Its types are in package api, a client for them in package client.
package console

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// Options are what a Server shows. Store is needed; what else is nil is not there.
type Options struct {
	Store   *store.Store
	Sources func() []model.Source   // fresher than the snapshot's
	Istiods func() []api.Istiod     // who is connected
	Traffic func() telemetry.Report // of the last seconds
	Ready   func() error            // why istiod cannot be served yet; nil if it can
	Filter  func() string           // where sidecars find the filter
	Token   func() (string, error)  // what clients of /api must send as bearer token; "" for none
	// Subsets are those of lifted services that sidecars ask for, by host and sidecar; "" is the whole service.
	Subsets func() map[string]map[string][]string
	Rules   RuleWriter // writes rules; nil: they can only be read
	// Rollouts are the releases that there are; nil: there can be none.
	Rollouts Rollouts

	Local   bool                 // whoever reaches us is on this machine: then rules can be written without a token
	Metrics *prometheus.Registry // what /metrics shows, and where our own go
	Log     *slog.Logger
	Version string // of the program
}

// Server is the API. It is an http.Handler.
type Server struct {
	o        Options
	mux      *http.ServeMux
	started  time.Time
	requests *prometheus.CounterVec
	duration prometheus.Histogram
	places   atomic.Pointer[applications]
}

// New returns the API.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Sources == nil {
		o.Sources = func() []model.Source { return o.Store.Load().Snapshot.Sources }
	}
	if o.Istiods == nil {
		o.Istiods = func() []api.Istiod { return nil }
	}
	if o.Traffic == nil {
		o.Traffic = func() telemetry.Report { return telemetry.New(telemetry.Options{}).Report() }
	}
	if o.Ready == nil {
		o.Ready = func() error { return nil }
	}
	if o.Filter == nil {
		o.Filter = func() string { return "" }
	}
	s := &Server{o: o, mux: http.NewServeMux(), started: time.Now()}
	s.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "isthmus_api_requests_total", Help: "Requests to the API, by path and status."}, []string{"path", "code"})
	s.duration = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "isthmus_api_request_duration_seconds", Help: "How long requests to the API took.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 10)})
	if o.Metrics != nil {
		o.Metrics.MustRegister(s.requests, s.duration)
		s.mux.Handle("GET /metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	}
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok") })
	s.mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Ready(); err != nil {
			plain(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		plain(w, http.StatusOK, "ok")
	})
	s.get("/api/v1/services", s.services)
	s.get("/api/v1/services/{id...}", s.service)
	s.get("/api/v1/problems", s.problems)
	s.get("/api/v1/sources", s.sources)
	s.get("/api/v1/rules", s.rules)
	s.get(rulePath, s.rule)
	s.mux.HandleFunc("PUT "+rulePath, s.change(rulePath, s.putRule))
	s.mux.HandleFunc("DELETE "+rulePath, s.change(rulePath, s.deleteRule))
	s.get(rolloutsPath, s.rollouts)
	s.get(rolloutPath, s.rollout)
	if o.Rollouts != nil {
		s.mux.HandleFunc("PUT "+rolloutPath, s.change(rolloutPath, s.putRollout))
		s.mux.HandleFunc("POST "+rolloutActionPath, s.change(rolloutActionPath, s.actOnRollout))
	}
	s.get("/api/v1/istiods", s.istiods)
	s.get("/api/v1/traffic", s.traffic)
	s.get("/api/v1/version", s.version)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			s.fail(w, "other", &failure{http.StatusMethodNotAllowed, "MethodNotAllowed", "only rules can be written, by PUT and DELETE, and rollouts, by PUT and POST"})
			return
		}
		s.fail(w, "other", notFound("there is nothing at %s", r.URL.Path))
	})
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// failure is an answer that is no success.
type failure struct {
	code    int
	reason  string
	message string
}

// Error returns the message.
func (f *failure) Error() string { return f.message }

func notFound(format string, args ...any) error {
	return &failure{http.StatusNotFound, "NotFound", fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return &failure{http.StatusBadRequest, "BadRequest", fmt.Sprintf(format, args...)}
}

// get serves what f returns as JSON.
func (s *Server) get(path string, f func(*http.Request) (any, error)) {
	s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		defer func() { s.duration.Observe(time.Since(began).Seconds()) }()
		if err := s.authorize(r); err != nil {
			s.fail(w, path, err)
			return
		}
		answer, err := f(r)
		if err != nil {
			s.fail(w, path, err)
			return
		}
		revision := ""
		if t, ok := answer.(tagged); ok {
			answer, revision = t.answer, t.revision
		}
		body, err := marshal(answer)
		if err != nil {
			s.o.Log.Error("cannot encode an answer", "path", path, "error", err)
			s.fail(w, path, errors.New("the answer cannot be encoded"))
			return
		}
		etag := etag(revision, body)
		h := w.Header()
		headers(h)
		h.Set("ETag", etag)
		if match := r.Header.Get("If-None-Match"); match != "" && strings.Contains(match, etag) {
			s.requests.WithLabelValues(path, "304").Inc()
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.Set("Content-Type", "application/json")
		s.requests.WithLabelValues(path, "200").Inc()
		w.Write(body) // the client is gone, or not
	})
}

// etag returns the tag of an answer, which begins with a revision if there is one.
func etag(revision string, body []byte) string {
	sum := sha256.Sum256(body)
	tag := base64.RawURLEncoding.EncodeToString(sum[:12])
	if revision != "" {
		tag = revision + "." + tag
	}
	return `"` + tag + `"`
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func headers(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
}

func (s *Server) fail(w http.ResponseWriter, path string, err error) {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = &failure{http.StatusInternalServerError, "Internal", err.Error()}
	}
	headers(w.Header())
	w.Header().Set("Content-Type", "application/json")
	if f.code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	s.requests.WithLabelValues(path, fmt.Sprint(f.code)).Inc()
	w.WriteHeader(f.code)
	body, _ := marshal(api.Error{Error: api.ErrorDetail{Code: f.code, Reason: f.reason, Message: f.message}})
	w.Write(body)
}

func plain(w http.ResponseWriter, code int, text string) {
	headers(w.Header())
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	fmt.Fprintln(w, text)
}

func (s *Server) authorize(r *http.Request) error {
	if s.o.Token == nil {
		return nil
	}
	want, err := s.o.Token()
	if err != nil {
		s.o.Log.Error("the token of the API's clients cannot be read", "error", err)
		return &failure{http.StatusUnauthorized, "Unauthorized", "no token can be checked"}
	}
	if want == "" || subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+want)) == 1 {
		return nil
	}
	return &failure{http.StatusUnauthorized, "Unauthorized", "a bearer token is needed"}
}

// The bounds of the HTTP server.
const (
	maxHeaderBytes = 64 << 10
	maxConns       = 1024
	shutdownGrace  = 2 * time.Second
)

// Serve answers at l until ctx is done; then it lets requests finish for a moment and returns nil. It takes over l. tlsConfig
// is nil for plaintext.
func (s *Server) Serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config) error {
	if tlsConfig != nil {
		l = tls.NewListener(l, tlsConfig)
	}
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if err := h.Shutdown(grace); err != nil {
			h.Close()
		}
	})
	err := h.Serve(newLimited(l, maxConns))
	if !stop() {
		<-done
		return nil
	}
	h.Close()
	return fmt.Errorf("console: serve %s: %w", l.Addr(), err)
}

func (s *Server) version(*http.Request) (any, error) {
	state := s.o.Store.Load()
	v := api.Version{
		Version: cmp.Or(s.o.Version, "dev"), GoVersion: runtime.Version(), Started: s.started, Ready: s.o.Ready() == nil,
		Snapshot: state.Snapshot.Version, Set: state.Set.Version(), Served: state.Served, Resources: state.Set.Len(),
		Services: len(state.Snapshot.Services), Problems: len(state.Problems), Rules: len(state.Rules),
		Istiods: len(s.o.Istiods()), Filter: s.o.Filter(), Generation: state.Generation,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				v.Revision = setting.Value
			}
		}
	}
	return v, nil
}
