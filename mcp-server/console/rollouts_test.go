package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
)

// rollouts notes what it is asked for.
type rollouts struct {
	asked []string
	err   error
	views []rollout.View
}

func (r *rollouts) Views() []rollout.View { return r.views }

func (r *rollouts) View(id rollout.ID) (rollout.View, error) {
	for _, v := range r.views {
		if v.Namespace == id.Namespace && v.Name == id.Name {
			return v, nil
		}
	}
	return rollout.View{}, fmt.Errorf("%w: %s", rollout.ErrNotFound, id)
}

func (r *rollouts) Start(_ context.Context, id rollout.ID, spec rollout.Spec) error {
	r.asked = append(r.asked, fmt.Sprintf("start %s %s %d", id, spec.Service.Interface, len(spec.Steps)))
	if r.err == nil {
		r.views = append(r.views, rollout.View{Namespace: id.Namespace, Name: id.Name, Phase: rollout.PhaseProgressing})
	}
	return r.err
}

func (r *rollouts) Act(_ context.Context, id rollout.ID, action rollout.Action) error {
	r.asked = append(r.asked, fmt.Sprintf("%s %s", action, id))
	if _, err := r.View(id); err != nil {
		return err
	}
	return r.err
}

const released = `apiVersion: governance.isthmus.io/v1alpha1
kind: Rollout
metadata: {name: greet}
spec: {service: {interface: demo.Greet}, stable: {version: v1}, canary: {version: v2}, steps: [{percent: 10}, {percent: 100}]}
`

func TestRollouts(t *testing.T) {
	r := &rollouts{}
	_, c := serve(t, Options{Rollouts: r, Rules: &writer{}, Local: true})
	ctx, id := t.Context(), client.RolloutID{Namespace: "default", Name: "greet"}
	if list, err := c.Rollouts(ctx); err != nil || len(list.Items) != 0 {
		t.Errorf("%+v %v", list, err)
	}
	if _, err := c.Rollout(ctx, id); !client.IsNotFound(err) || !strings.Contains(err.Error(), "there is no such rollout: default/greet") {
		t.Error(err)
	}
	if v, err := c.StartRollout(ctx, id, []byte(released)); err != nil || v.Name != "greet" || v.Phase != rollout.PhaseProgressing {
		t.Fatalf("%+v %v", v, err)
	}
	for _, a := range rollout.Actions {
		if v, err := c.ActOnRollout(ctx, id, a); err != nil || v.Name != "greet" {
			t.Errorf("%s: %+v %v", a, v, err)
		}
	}
	if list, err := c.Rollouts(ctx); err != nil || len(list.Items) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	want := "start default/greet demo.Greet 2; pause default/greet; resume default/greet; promote default/greet; promote-full default/greet; abort default/greet"
	if got := strings.Join(r.asked, "; "); got != want {
		t.Errorf("asked for %s, want %s", got, want)
	}
	for name, c2 := range map[string]struct {
		id   client.RolloutID
		text string
		err  error
		code int
		want string
	}{
		"faults":       {id, strings.Replace(released, "percent: 10}", "percent: 0}", 1), nil, 422, "line 4: spec.steps[0].percent: must be from 1 to 100"},
		"no document":  {id, "", nil, 422, "apiVersion: must be"},
		"another name": {client.RolloutID{Namespace: "default", Name: "pay"}, released, nil, 400, "the rollout is default/greet, the path says default/pay"},
		"too long":     {id, released + strings.Repeat("#", maxRuleBytes), nil, 413, "at most 1048576 bytes"},
		"no service":   {id, released, adapters.Faults{{Path: "spec.service", Message: "there is none"}}, 422, "spec.service: there is none"},
		"active":       {id, released, fmt.Errorf("%w: x", rollout.ErrActive), 409, "a rollout is under way: x"},
		"foreign":      {id, released, rollout.ErrForeign, 409, "somebody's own"},
		"not writable": {id, released, fmt.Errorf("%w: full", ErrNotWritable), 409, "full"},
		"broken":       {id, released, errors.New("broken"), 500, "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			r.err = c2.err
			_, err := c.StartRollout(ctx, c2.id, []byte(c2.text))
			if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != c2.code || !strings.Contains(e.Message, c2.want) {
				t.Errorf("got %v, want %d %s", err, c2.code, c2.want)
			}
		})
	}
	r.err = fmt.Errorf("%w: it is", rollout.ErrEnded)
	if _, err := c.ActOnRollout(ctx, id, rollout.ActionPause); err == nil || !strings.Contains(err.Error(), "the rollout is over: it is") {
		t.Error(err)
	}
	if _, err := c.ActOnRollout(ctx, id, "fly"); !client.IsNotFound(err) || !strings.Contains(err.Error(), `there is no action "fly"; there are pause, resume, promote, promote-full, abort`) {
		t.Error(err)
	}
}

// Whoever may not write rules may not release either; where there are none they can be looked at all the same.
func TestWhoMayRelease(t *testing.T) {
	r := &rollouts{}
	s, c := serve(t, Options{Rollouts: r, Rules: &writer{}})
	if _, err := c.StartRollout(t.Context(), client.RolloutID{Namespace: "default", Name: "greet"}, []byte(released)); err == nil || !strings.Contains(err.Error(), "spec.api.token") {
		t.Error(err)
	}
	if _, err := c.ActOnRollout(t.Context(), client.RolloutID{Namespace: "default", Name: "greet"}, rollout.ActionAbort); err == nil || !strings.Contains(err.Error(), "spec.api.token") {
		t.Error(err)
	}
	if len(r.asked) > 0 {
		t.Errorf("asked for %v", r.asked)
	}
	answer, err := http.Post(s.URL+"/api/v1/rollouts", "application/json", nil)
	if err != nil || answer.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("%v %v", answer, err)
	} else {
		answer.Body.Close()
	}
	_, c = serve(t, Options{})
	if list, err := c.Rollouts(t.Context()); err != nil || list.Items == nil || len(list.Items) > 0 {
		t.Errorf("%+v %v", list, err)
	}
	if _, err := c.Rollout(t.Context(), client.RolloutID{Namespace: "default", Name: "greet"}); !client.IsNotFound(err) {
		t.Error(err)
	}
}
