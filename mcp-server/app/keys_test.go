package app

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const signed = `apiVersion: governance.isthmus.io/v1alpha1
kind: AccessRule
metadata: {name: signed}
spec:
  target: {application: greet}
  action: allow
  token: {from: {attachment: sign}, keyRef: {name: partners}, hmac: {timestamp: time}}
`

// A secret goes from its file to istiod, and is followed when it changes; nothing else that comes out of mcp-server holds it.
func TestSecretsAreKept(t *testing.T) {
	dir := t.TempDir()
	one, two := "one-0123456789-0123456789-0123456789", "two-0123456789-0123456789-0123456789"
	forms := func(secret string) []string {
		return []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret))}
	}
	write(t, dir+"/isthmus.yaml", strings.ReplaceAll(configuration, "DIR", dir)+"  keys: {path: keys}\n")
	write(t, dir+"/services.yaml", strings.ReplaceAll(services, "%s", "One"))
	write(t, dir+"/rules/a.yaml", signed)
	p := start(t, dir)
	i := p.istiod()
	p.until("the problem of a key that is missing", func() bool { return p.problem("MissingKeys") })
	write(t, filepath.Join(dir, "keys", "partners.secret"), one+"\n")
	p.until("the secret", func() bool { return i.holds(trafficExtension, forms(one)[1]) })
	p.until("the problem to go", func() bool { return !p.problem("MissingKeys") })
	write(t, filepath.Join(dir, "keys", "partners.secret"), "short")
	p.until("the bad secret's problem", func() bool { return p.problem("InvalidKeys") })
	if !i.holds(trafficExtension, forms(one)[1]) {
		t.Error("a bad file took the secret away")
	}
	write(t, filepath.Join(dir, "keys", "partners.secret"), two)
	p.until("the other secret", func() bool {
		return i.holds(trafficExtension, forms(two)[1]) && !i.holds(trafficExtension, forms(one)[1])
	})
	p.until("the problem to go", func() bool { return !p.problem("InvalidKeys") })

	shown := ""
	for _, path := range []string{"/api/v1/rules", "/api/v1/rules/AccessRule/default/signed", "/api/v1/problems", "/api/v1/services", "/api/v1/istiods", "/api/v1/sources",
		"/api/v1/traffic", "/api/v1/version", "/metrics", "/readyz"} {
		code, body := p.get(path)
		if code != 200 {
			t.Errorf("%s: %d %s", path, code, body)
		}
		shown += body
	}
	if !strings.Contains(shown, `"partners"`) {
		t.Error("the rule is not shown with the name of its keys")
	}
	p.logs.mu.Lock()
	shown += p.logs.text.String()
	p.logs.mu.Unlock()
	err := filepath.Walk(filepath.Join(dir, "state"), func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		shown += string(text)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, secret := range append(forms(one), forms(two)...) {
		if strings.Contains(shown, secret) {
			t.Errorf("%s is shown", secret)
		}
	}

	// mcp-server --check reads keys, too.
	if err := Check(dir + "/isthmus.yaml"); err != nil {
		t.Error(err)
	}
	write(t, filepath.Join(dir, "keys", "partners.secret"), "short")
	if err := Check(dir + "/isthmus.yaml"); err == nil || !strings.Contains(err.Error(), "partners.secret: a secret of 5 bytes is too short") {
		t.Errorf("a bad file of keys: %v", err)
	}
}
