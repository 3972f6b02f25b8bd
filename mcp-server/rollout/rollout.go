package rollout

import (
	"encoding/json"
	"fmt"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
)

// Phase is how a release is doing.
type Phase string

// The phases.
const (
	PhaseProgressing Phase = "Progressing" // it goes on by itself
	PhasePaused      Phase = "Paused"      // somebody has stopped it for now; it is watched all the same
	PhaseCompleted   Phase = "Completed"   // the new version has all calls
	PhaseFailed      Phase = "Failed"      // the new version has failed, and has lost its calls
	PhaseAborted     Phase = "Aborted"     // somebody has called it off, and the new version has lost its calls
)

// Active tells whether the release is still under way.
func (p Phase) Active() bool { return p == PhaseProgressing || p == PhasePaused }

// Passed is what was seen of a step that is over.
type Passed struct {
	Percent governance.Count `json:"percent"`
	Result  Result           `json:"result"`
	Why     string           `json:"why,omitempty"`
	Began   time.Time        `json:"began"`
	Ended   time.Time        `json:"ended"`
	Stable  Figures          `json:"stable"`
	Canary  Figures          `json:"canary"`
}

// Result is how a step ended.
type Result string

// The results.
const (
	ResultPassed   Result = "passed"   // the new version did well
	ResultPromoted Result = "promoted" // somebody went on without waiting for it
	ResultFailed   Result = "failed"   // the new version did not do well
	ResultAborted  Result = "aborted"  // somebody called it off
)

// Status is how far a release is: what is kept beside its rule, and so outlives mcp-server.
type Status struct {
	Phase Phase `json:"phase"`
	// Step is the one that is under way, from 0; before the first one stepAnnounced, and then stepWaiting.
	Step    int       `json:"step"`
	Since   time.Time `json:"since"` // when the step began
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Message string    `json:"message,omitempty"` // why it is not under way any more, or is paused
	Passed  []Passed  `json:"passed,omitempty"`
}

// The steps before the first one.
const (
	// stepAnnounced is until all sidecars know both versions: a route to one that a sidecar has yet to hear of would fail.
	stepAnnounced = -2
	// stepWaiting is until the new version has an instance.
	stepWaiting = -1
)

// annotation is where a release is kept: at its RouteRule, so that what it is and what it does are written at once.
const annotation = "isthmus.io/rollout"

// maxAnnotation bounds it in bytes.
const maxAnnotation = 256 << 10

// record is the annotation's form.
type record struct {
	Spec   Spec   `json:"spec"`
	Status Status `json:"status"`
}

// percent is how many of a hundred calls the new version gets.
func (r *record) percent() governance.Count {
	switch {
	case r.Status.Phase == PhaseCompleted:
		return whole
	case !r.Status.Phase.Active() || r.Status.Step < 0:
		return 0
	}
	return r.Spec.Steps[r.Status.Step].Percent
}

// rule is what its RouteRule has to say.
func (r *record) rule() governance.RouteSpec {
	return r.Spec.rule(r.percent(), r.Status.Phase.Active() && r.Status.Step == stepAnnounced)
}

// reference is what the old version did in the last step that had enough of its calls, nil where there was none.
func (r *record) reference() *Figures {
	for i := len(r.Status.Passed) - 1; i >= 0; i-- {
		if f := &r.Status.Passed[i].Stable; f.Calls >= float64(r.Spec.Analysis.MinCalls) {
			return f
		}
	}
	return nil
}

// text is the RouteRule that holds a release, as YAML.
func (r *record) text(id ID) ([]byte, error) {
	note, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("rollout: %s: %w", id, err)
	}
	rule := id.rule()
	b, err := json.Marshal(struct {
		APIVersion string               `json:"apiVersion"`
		Kind       string               `json:"kind"`
		Metadata   metadata             `json:"metadata"`
		Spec       governance.RouteSpec `json:"spec"`
	}{governance.APIVersion, rule.Kind, metadata{Name: rule.Name, Namespace: rule.Namespace, Annotations: map[string]string{annotation: string(note)}}, r.rule()})
	if err == nil {
		b, err = yaml.JSONToYAML(b)
	}
	if err != nil {
		return nil, fmt.Errorf("rollout: %s: %w", id, err)
	}
	return b, nil
}

// parseRecord reads the annotation of a RouteRule; ok is false where there is none. An error says what is wrong with it.
func parseRecord(rule *governance.Rule) (_ *record, ok bool, _ error) {
	note, ok := rule.Annotations[annotation]
	if !ok {
		return nil, false, nil
	}
	if len(note) > maxAnnotation {
		return nil, true, fmt.Errorf("rollout: %s: its annotation is longer than %d bytes", rule.ID, maxAnnotation)
	}
	var parts struct {
		Spec   adapters.Settings `json:"spec"`
		Status Status            `json:"status"`
	}
	if err := json.Unmarshal([]byte(note), &parts); err != nil {
		return nil, true, fmt.Errorf("rollout: %s: its annotation: %w", rule.ID, err)
	}
	r := &record{Status: parts.Status}
	if err := parts.Spec.Decode(&r.Spec); err != nil {
		return nil, true, fmt.Errorf("rollout: %s: its annotation: spec: %w", rule.ID, err)
	}
	r.Spec = r.Spec.withDefaults()
	s := &r.Status
	switch s.Phase {
	case PhaseProgressing, PhasePaused, PhaseCompleted, PhaseFailed, PhaseAborted:
	default:
		return nil, true, fmt.Errorf("rollout: %s: its annotation: unknown phase %q", rule.ID, clip(string(s.Phase)))
	}
	if s.Step < stepAnnounced || s.Step >= len(r.Spec.Steps) || len(s.Passed) > maxSteps+1 {
		return nil, true, fmt.Errorf("rollout: %s: its annotation: there is no step %d", rule.ID, s.Step)
	}
	return r, true, nil
}

// ours tells whether a rule says what its release has made it say, and nobody else.
func (r *record) ours(rule *governance.Rule) bool {
	want := r.rule()
	a, errA := json.Marshal(&want)
	b, errB := rule.JSON()
	return errA == nil && errB == nil && string(a) == string(b)
}
