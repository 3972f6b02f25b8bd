package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
)

// Rollouts are the releases that are under way, and those that are over. Its methods may be called from any goroutine; their errors are
// those of rollout.Controller.
type Rollouts interface {
	Views() []rollout.View
	View(id rollout.ID) (rollout.View, error)
	Start(ctx context.Context, id rollout.ID, spec rollout.Spec) error
	Act(ctx context.Context, id rollout.ID, action rollout.Action) error
}

// Where rollouts are.
const (
	rolloutsPath      = "/api/v1/rollouts"
	rolloutPath       = rolloutsPath + "/{namespace}/{name}"
	rolloutActionPath = rolloutPath + "/{action}"
)

func rolloutID(r *http.Request) rollout.ID {
	return rollout.ID{Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
}

func (s *Server) rollouts(r *http.Request) (any, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	list := api.RolloutList{Items: []api.Rollout{}}
	if s.o.Rollouts != nil {
		list.Items = s.o.Rollouts.Views()
	}
	return list, nil
}

func (s *Server) rollout(r *http.Request) (any, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	if s.o.Rollouts == nil {
		return nil, notFound("there is no rollout %s", rolloutID(r))
	}
	v, err := s.o.Rollouts.View(rolloutID(r))
	if err != nil {
		return nil, rolloutFailure(err)
	}
	return v, nil
}

// rolloutFailure gives an error of the controller its status.
func rolloutFailure(err error) error {
	for _, f := range []struct {
		is     error
		code   int
		reason string
	}{
		{rollout.ErrNotFound, http.StatusNotFound, "NotFound"}, {rollout.ErrActive, http.StatusConflict, "Active"},
		{rollout.ErrEnded, http.StatusConflict, "Ended"}, {rollout.ErrForeign, http.StatusConflict, "Foreign"}, {ErrNotWritable, http.StatusConflict, "NotWritable"},
	} {
		if errors.Is(err, f.is) {
			return &failure{f.code, f.reason, err.Error()}
		}
	}
	return err
}

func (s *Server) putRollout(r *http.Request) (int, any, error) {
	if _, err := parameters(r); err != nil {
		return 0, nil, err
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !slices.Contains(ruleMedia, media) {
		return 0, nil, &failure{http.StatusUnsupportedMediaType, "UnsupportedMediaType", "send application/yaml or application/json"}
	}
	text, err := io.ReadAll(io.LimitReader(r.Body, maxRuleBytes+1))
	if err != nil {
		return 0, nil, badRequest("the rollout cannot be read: %v", err)
	}
	if len(text) > maxRuleBytes {
		return 0, nil, &failure{http.StatusRequestEntityTooLarge, "TooLarge", fmt.Sprintf("a rollout has at most %d bytes", maxRuleBytes)}
	}
	id, spec, err := rollout.Parse(text)
	switch {
	case err != nil:
		return 0, nil, &failure{http.StatusUnprocessableEntity, "InvalidRollout", err.Error()}
	case id != rolloutID(r):
		return 0, nil, badRequest("the rollout is %s, the path says %s", id, rolloutID(r))
	}
	if err := s.o.Rollouts.Start(r.Context(), id, spec); err != nil {
		return 0, nil, startFailure(err)
	}
	s.o.Log.Info("rollout started", "rollout", id.String(), "remote", r.RemoteAddr)
	answer, err := s.rollout(r)
	return http.StatusCreated, answer, err
}

// startFailure is rolloutFailure for what may also be wrong with what was sent.
func startFailure(err error) error {
	if rollout.IsInvalid(err) {
		return &failure{http.StatusUnprocessableEntity, "InvalidRollout", err.Error()}
	}
	return rolloutFailure(err)
}

func (s *Server) actOnRollout(r *http.Request) (int, any, error) {
	if _, err := parameters(r); err != nil {
		return 0, nil, err
	}
	id, action := rolloutID(r), rollout.Action(r.PathValue("action"))
	if !slices.Contains(rollout.Actions, action) {
		var known []string
		for _, a := range rollout.Actions {
			known = append(known, string(a))
		}
		return 0, nil, notFound("there is no action %q; there are %s", action, strings.Join(known, ", "))
	}
	if err := s.o.Rollouts.Act(r.Context(), id, action); err != nil {
		return 0, nil, rolloutFailure(err)
	}
	s.o.Log.Info("rollout acted on", "rollout", id.String(), "action", string(action), "remote", r.RemoteAddr)
	answer, err := s.rollout(r)
	return http.StatusOK, answer, err
}
