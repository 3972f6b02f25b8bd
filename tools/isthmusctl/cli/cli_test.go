package cli

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write the golden files again")

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// result is what a command line came to.
type result struct {
	code     int
	out, err string
}

// invoke runs a command line with the given standard input.
func invoke(t *testing.T, in string, args ...string) result {
	t.Helper()
	var out, err bytes.Buffer
	code := Run(t.Context(), &Streams{In: strings.NewReader(in), Out: &out, Err: &err}, args)
	return result{code, out.String(), err.String()}
}

// golden compares text with a file in testdata, or writes it there with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (write it with -update)", err)
	}
	if got != string(want) {
		t.Errorf("%s: got:\n%s\nwant:\n%s", name, got, want)
	}
}

func TestUsageFaults(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		err  string
	}{
		"unknown command":  {[]string{"fly"}, `isthmusctl: unknown command "fly" for "isthmusctl"`},
		"unknown flag":     {[]string{"decode", "--octal"}, "isthmusctl: unknown flag: --octal"},
		"too many files":   {[]string{"decode", "a", "b"}, "isthmusctl: accepts at most 1 arg(s), received 2"},
		"both forms":       {[]string{"decode", "--hex", "--raw"}, "isthmusctl: --hex and --raw exclude each other"},
		"unknown protocol": {[]string{"decode", "--protocol", "smtp"}, `isthmusctl: --protocol "smtp": one of auto, `},
		"no such file":     {[]string{"decode", "testdata/none"}, "isthmusctl: open testdata/none: "},
	} {
		t.Run(name, func(t *testing.T) {
			r := invoke(t, "", c.args...)
			if r.code != ExitUsage || r.out != "" || !strings.HasPrefix(r.err, c.err) || strings.Count(r.err, "\n") != 1 {
				t.Errorf("got %d, %q, %q; want %d and one line %q", r.code, r.out, r.err, ExitUsage, c.err)
			}
		})
	}
}

// TestCommandsAreDocumented holds every command to a short text and an ending that fits the others.
func TestCommandsAreDocumented(t *testing.T) {
	commands := New(&Streams{}).Commands()
	if len(commands) == 0 {
		t.Fatal("no commands")
	}
	for len(commands) > 0 {
		c := commands[0]
		commands = append(commands[1:], c.Commands()...)
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short text %q", c.CommandPath(), c.Short)
		}
		if c.Runnable() && c.Args == nil {
			t.Errorf("%s takes any arguments", c.CommandPath())
		}
	}
}
