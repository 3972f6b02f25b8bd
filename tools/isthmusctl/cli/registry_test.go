package cli

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters/zookeeper/zktest"
)

// configuration is a file that a person keeps.
const configuration = `# Kept by the platform team.
apiVersion: isthmus.io/v1alpha1
kind: MCPServer
spec:
  # What we read.
  registries:
    # the old one
    - name: old
      kind: file
      settings: {path: /nonexistent/services}

    - name: zk # the new one
      kind: zookeeper
      settings:
        servers: [192.0.2.1:2181]

  mesh: {namespace: shop} # all of it
`

// configFileOf writes a configuration to a file of its own.
func configFileOf(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "isthmus.yaml")
	write(t, name, text)
	t.Setenv(envConfig, "")
	return name
}

func TestRegistryEdits(t *testing.T) {
	cut := func(from, to string) string { return strings.Replace(configuration, from, to, 1) }
	for name, c := range map[string]struct {
		args []string
		code int
		want string // the file afterwards; "" as before
		out  string // part of what is said
	}{
		"add": {[]string{"add", "by-hand", "--kind", "file", "--set", "path=/srv/services", "--set", "rescan=30s"}, ExitOK,
			cut("2181]\n", "2181]\n    - name: by-hand\n      kind: file\n      settings:\n        path: /srv/services\n        rescan: 30s\n"), "by-hand is added; try it: isthmusctl registry check by-hand --config "},
		"add with lists and mappings": {[]string{"add", "zk2", "--kind", "zookeeper", "--set", "servers=a:1", "--set", "servers=b:2", "--set", "layouts=[dubbo]", "--set", "tls.enabled=true", "--set", "tls.serverName=zk", "--set", "chroot="}, ExitOK,
			cut("2181]\n", "2181]\n    - name: zk2\n      kind: zookeeper\n      settings:\n        servers: ['a:1', 'b:2']\n        layouts: [dubbo]\n        tls:\n          enabled: true\n          serverName: zk\n        chroot: \"\"\n"), "zk2 is added"},
		"add what is there":        {[]string{"add", "zk", "--kind", "file", "--set", "path=/x"}, ExitBad, "", `there is a registry "zk" already`},
		"add without a kind":       {[]string{"add", "x"}, ExitUsage, "", "--kind is needed: one of file, "},
		"add an unknown kind":      {[]string{"add", "x", "--kind", "zookeepr"}, ExitUsage, "", `kind: unknown kind "zookeepr"; known are file, `},
		"add a faulty name":        {[]string{"add", "X", "--kind", "file", "--set", "path=/x"}, ExitUsage, "", `name: "X" is not a name`},
		"add faulty settings":      {[]string{"add", "x", "--kind", "zookeeper", "--set", "servers=a:1", "--set", "colour=red"}, ExitUsage, "", `settings.servers: must be a list, is "a:1"`},
		"add without an equals":    {[]string{"add", "x", "--kind", "file", "--set", "path"}, ExitUsage, "", `--set "path" is not FIELD=VALUE`},
		"add without a field":      {[]string{"add", "x", "--kind", "file", "--set", "a..b=1"}, ExitUsage, "", `--set "a..b=1" is not FIELD=VALUE`},
		"add what is not YAML":     {[]string{"add", "x", "--kind", "file", "--set", "path=[a"}, ExitUsage, "", `--set path: "[a" is not YAML: `},
		"add below a value":        {[]string{"add", "x", "--kind", "file", "--set", "path=a", "--set", "path.b=c"}, ExitUsage, "", "--set path.b: path has a value already"},
		"add a mapping twice":      {[]string{"add", "x", "--kind", "file", "--set", "path.b=c", "--set", "path=a"}, ExitUsage, "", "--set path is there twice"},
		"remove":                   {[]string{"remove", "old"}, ExitOK, cut("    # the old one\n    - name: old\n      kind: file\n      settings: {path: /nonexistent/services}\n\n", "\n"), "old is removed"},
		"remove what there is not": {[]string{"remove", "older"}, ExitBad, "", `there is no registry "older"; there are old, zk`},
	} {
		t.Run(name, func(t *testing.T) {
			file := configFileOf(t, configuration)
			r := invoke(t, "", append(append([]string{"registry"}, c.args...), "--config", file)...)
			said := r.out + r.err
			if r.code != c.code || !strings.Contains(said, c.out) || (r.code == ExitOK) != (r.err == "") {
				t.Errorf("got %+v; want %d and %q", r, c.code, c.out)
			}
			if c.want == "" {
				c.want = configuration
			}
			after, err := os.ReadFile(file)
			if err != nil || string(after) != c.want {
				t.Errorf("%v; the file is now\n%s\nwant\n%s", err, after, c.want)
			}
			if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 1 {
				t.Errorf("files are left behind: %v", left)
			}
		})
	}
}

func TestRegistryFiles(t *testing.T) {
	add := []string{"registry", "add", "x", "--kind", "file", "--set", "path=/x"}
	t.Run("not named", func(t *testing.T) {
		t.Setenv(envConfig, "")
		if r := invoke(t, "", add...); r.code != ExitUsage || !strings.Contains(r.err, "--config or $ISTHMUS_CONFIG") {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("named by the environment", func(t *testing.T) {
		file := configFileOf(t, configuration)
		t.Setenv(envConfig, file)
		if r := invoke(t, "", add...); r.code != ExitOK {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("missing", func(t *testing.T) {
		if r := invoke(t, "", append(add, "--config", "testdata/none.yaml")...); r.code != ExitUsage || !strings.Contains(r.err, "no such file") {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("faulty before", func(t *testing.T) {
		file := configFileOf(t, strings.Replace(configuration, "mesh:", "mess:", 1))
		for _, args := range [][]string{add, {"registry", "remove", "old"}} {
			r := invoke(t, "", append(args, "--config", file)...)
			if r.code != ExitBad || !strings.Contains(r.err, "the file has faults, and is not changed:\n"+file+":17: spec.mess: unknown field") {
				t.Errorf("got %+v", r)
			}
		}
		if r := invoke(t, "", "registry", "list", "--config", file); r.code != ExitBad || !strings.Contains(r.err, file+":17: spec.mess") {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("no list", func(t *testing.T) {
		for text, want := range map[string]string{"": "the file is empty", "spec: {registries: 1}": "spec.registries must be a list", "spec: [": "did not find"} {
			if r := invoke(t, "", append(add, "--config", configFileOf(t, text))...); r.code != ExitBad || !strings.Contains(r.err, want) {
				t.Errorf("%q: got %+v, want %q", text, r, want)
			}
		}
	})
	t.Run("mode and link stay", func(t *testing.T) {
		file := configFileOf(t, configuration)
		if err := os.Chmod(file, 0o640); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(t.TempDir(), "link.yaml")
		if err := os.Symlink(file, link); err != nil {
			t.Fatal(err)
		}
		if r := invoke(t, "", append(add, "--config", link)...); r.code != ExitOK {
			t.Fatalf("got %+v", r)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("mode %v %v", info.Mode(), err)
		}
		if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("the link is now %v %v", info.Mode(), err)
		}
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), "name: x") {
			t.Errorf("%s %v", text, err)
		}
	})
	t.Run("changed by somebody else", func(t *testing.T) {
		file := configFileOf(t, configuration)
		if err := replaceFile(file, []byte("what was read"), []byte("what is written")); err == nil || !strings.Contains(err.Error(), "was changed by somebody else") {
			t.Errorf("got %v", err)
		}
		if text, _ := os.ReadFile(file); string(text) != configuration {
			t.Errorf("the file is now %s", text)
		}
	})
}

func TestRegistryList(t *testing.T) {
	file := configFileOf(t, configuration)
	r := invoke(t, "", "registry", "list", "--config", file)
	if r.code != ExitOK {
		t.Fatalf("got %+v", r)
	}
	golden(t, "registry-list.txt", r.out)
	r = invoke(t, "", "registry", "list", "--config", file, "-o", "yaml")
	golden(t, "registry-list.yaml", r.out)
	none := configFileOf(t, "apiVersion: isthmus.io/v1alpha1\nkind: MCPServer\n")
	if r := invoke(t, "", "registry", "list", "--config", none, "-o", "json"); r.code != ExitOK || r.out != "[]\n" {
		t.Errorf("none: got %+v", r)
	}
	for _, verb := range []string{"list", "check"} {
		if r := invoke(t, "", "registry", verb, "--config", none); r.code != ExitOK || r.out != "no registries are configured\n" {
			t.Errorf("%s of none: got %+v", verb, r)
		}
	}
}

// provider creates the node of a Dubbo provider, as Dubbo names it.
func provider(zk *zktest.Server, iface, address, parameters string) {
	zk.Create("/dubbo/"+iface+"/providers/"+url.QueryEscape("dubbo://"+address+"/"+iface+"?interface="+iface+"&"+parameters), nil)
}

// TestRegistryCheck reads a ZooKeeper as production does.
func TestRegistryCheck(t *testing.T) {
	zk := zktest.Start(t)
	provider(zk, "demo.GreetService", "192.0.2.10:20880", "application=greet&version=1.0.0")
	provider(zk, "demo.GreetService", "192.0.2.11:20880", "application=greet&version=1.0.0")
	provider(zk, "demo.StockService", "192.0.2.11:20880", "application=stock")
	zk.Create("/dubbo/demo.GreetService/consumers/"+url.QueryEscape("consumer://192.0.2.77/demo.GreetService?application=shop&version=1.0.0"), nil)
	file := configFileOf(t, "apiVersion: isthmus.io/v1alpha1\nkind: MCPServer\nspec:\n  registries:\n    - name: zk\n      kind: zookeeper\n      settings: {servers: ['"+zk.Address()+"'], layouts: [dubbo]}\n"+
		"    - name: list\n      kind: file\n      settings: {path: testdata/services.yaml}\n")
	seconds := regexp.MustCompile(`in \d+\.\d s`)
	show := func(r result) string { return seconds.ReplaceAllString(r.out, "in 0.0 s") }

	r := invoke(t, "", "registry", "check", "--config", file)
	if r.code != ExitOK || r.err != "" {
		t.Fatalf("got %+v", r)
	}
	golden(t, "registry-check.txt", show(r))

	var all []checkedRegistry
	r = invoke(t, "", "registry", "check", "zk", "--config", file, "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &all); err != nil || r.code != ExitOK || len(all) != 1 || !all[0].Complete || len(all[0].Services) != 2 || len(all[0].Services[0].Endpoints) != 2 {
		t.Errorf("got %+v %v", r, err)
	}
	r = invoke(t, "", "registry", "check", "zookeeper", "--config", file)
	if r.code != ExitBad || !strings.Contains(r.err, `there is no registry "zookeeper"; there are zk, list`) {
		t.Errorf("an unknown one: got %+v", r)
	}

	zk.Create("/dubbo/demo.GreetService/providers/"+url.QueryEscape("dubbo://192.0.2.12"), nil)
	r = invoke(t, "", "registry", "check", "zk", "--config", file)
	if r.code != ExitBad || r.err != "" {
		t.Errorf("with faulty data: got %+v", r)
	}
	golden(t, "registry-check-problem.txt", show(r))

	for i := range 30 {
		provider(zk, "demo.Many"+strings.Repeat("x", i), "192.0.2.10:20880", "application=many")
	}
	r = invoke(t, "", "registry", "check", "zk", "--config", file)
	if !strings.Contains(r.out, "… and 12 more; --all shows them") || strings.Contains(r.out, "demo.StockService") {
		t.Errorf("many: got %+v", r)
	}
	if r = invoke(t, "", "registry", "check", "zk", "--config", file, "--all"); !strings.Contains(r.out, "demo.StockService") {
		t.Errorf("all of many: got %+v", r)
	}

	zk.Refuse(true)
	r = invoke(t, "", "registry", "check", "zk", "--config", file, "--timeout", "300ms")
	if r.code != ExitUnreachable || !strings.Contains(r.out, "zk (zookeeper): not heard: ") || !strings.Contains(r.out, "(after 300ms)") {
		t.Errorf("away: got %+v", r)
	}
	if r = invoke(t, "", "registry", "check", "--config", file, "--timeout", "0s"); r.code != ExitUsage {
		t.Errorf("no time: got %+v", r)
	}
}
