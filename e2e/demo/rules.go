package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
)

// appliedRule is a rule of the story.
type appliedRule struct {
	name, text string
	method     string // whose calls it rejects
	told       string // what their callers are told
}

// breakAndDeny applies rules of two more kinds at a time, at one end each, and takes them away again.
func breakAndDeny(ctx context.Context, t *story) error {
	rules := []appliedRule{
		{"fails-too-often", `apiVersion: governance.isthmus.io/v1alpha1
kind: CircuitBreakerRule
metadata:
  name: fails-too-often
spec:
  direction: client
  target: {service: demo.GreetService, method: fail}
  strategy: errorRatio
  threshold: 50%
  errors: [exception]
  statInterval: 10s
  minRequestAmount: 2
  retryTimeout: 1m
`, "fail", `isthmus: unavailable: rule "default/fails-too-often"`},
		{"not-for-them", `apiVersion: governance.isthmus.io/v1alpha1
kind: AccessRule
metadata:
  name: not-for-them
spec:
  direction: server
  target: {service: demo.StockService}
  action: deny
  match:
    - {subject: callerApplication, operator: equals, values: [greet-consumer]}
`, "price", `isthmus: denied: rule "default/not-for-them"`},
	}
	m, begin := t.consumer.Mark(), time.Now()
	for _, r := range rules {
		t.note("%s", t.paint(bold, "rules/"+r.name+".yaml"))
		t.quote(r.text)
		if err := t.mesh.ApplyRule(r.name, r.text); err != nil {
			return err
		}
	}
	told := make([]string, len(rules))
	if err := t.consumer.Until(ctx, "to feel both rules", m, func(s []caller.Tally, faults []caller.Fault) bool {
		for i, r := range rules {
			for _, f := range faults {
				if f.Method == r.method && strings.Contains(f.Message, r.told) {
					told[i] = f.Error + ": … " + f.Message[max(0, strings.LastIndex(f.Message, "cause: ")):]
				}
			}
		}
		return len(s) > 1 && !slices.Contains(told, "") && s[len(s)-1]["sayHello"].OK > 0
	}); err != nil {
		return err
	}
	t.ok("both in force after %s, the circuit open; what their callers get:", since(begin))
	for _, text := range told {
		t.quote(text)
	}
	seconds, _, err := t.consumer.Next(ctx, 2)
	if err != nil {
		return err
	}
	for method, c := range caller.Sum(seconds) {
		ruled := slices.ContainsFunc(rules, func(r appliedRule) bool { return r.method == method })
		if ruled && (c.Errors == 0 || c.OK+c.Exceptions > 0) || !ruled && c.Errors > 0 {
			return fmt.Errorf("%s: %+v", method, c)
		}
	}
	t.ok("no call of theirs reaches the provider's code, all others run on: %s", caller.Sum(seconds))
	if err := t.show(ctx, "rules"); err != nil {
		return err
	}
	begin = time.Now()
	for _, r := range rules {
		if err := t.mesh.RemoveRule(r.name); err != nil {
			return err
		}
	}
	if err := t.free(ctx); err != nil {
		return err
	}
	t.ok("the rules are taken away, and all calls come through, %s", since(begin))
	return nil
}
