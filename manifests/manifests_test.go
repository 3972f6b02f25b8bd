// Package manifests_test holds the YAML in this folder to the decoders of those who read it.
package manifests_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/manifests/validate"
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// files returns every YAML file of this folder.
func files(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".yaml") && !slices.Contains(strings.Split(path, string(filepath.Separator)), "testdata") {
			names = append(names, path)
		}
		return nil
	})
	if err != nil || len(names) == 0 {
		t.Fatalf("no files: %v", err)
	}
	return names
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestFilesAreValid reads every file with the decoder of its kind. Envoy's bootstrap, Kubernetes' own kinds and our definitions of others have
// tests of their own.
func TestFilesAreValid(t *testing.T) {
	for _, file := range files(t) {
		t.Run(file, func(t *testing.T) {
			err := validate.YAML(read(t, file), "")
			if errors.Is(err, validate.ErrUnknownKind) && slices.Contains([]string{"kubernetes", "bootstrap", "crds"}, filepath.Dir(file)) {
				return
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestInstallOverlayShowsTheFiltersMetrics holds the overlay to the labels that the filter's metrics carry.
func TestInstallOverlayShowsTheFiltersMetrics(t *testing.T) {
	var overlay struct {
		Spec struct {
			MeshConfig struct {
				ConfigSources []struct {
					Address string `json:"address"`
				} `json:"configSources"`
				DefaultConfig struct {
					ExtraStatTags []string `json:"extraStatTags"`
				} `json:"defaultConfig"`
			} `json:"meshConfig"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(read(t, "istioctl/isthmus-overlay.yaml"), &overlay); err != nil {
		t.Fatal(err)
	}
	if got := overlay.Spec.MeshConfig.DefaultConfig.ExtraStatTags; !slices.Equal(got, config.StatTags) {
		t.Errorf("extraStatTags: got %q, want config.StatTags %q", got, config.StatTags)
	}
	var schemes []string
	for _, source := range overlay.Spec.MeshConfig.ConfigSources {
		scheme, _, _ := strings.Cut(source.Address, "://")
		schemes = append(schemes, scheme)
	}
	slices.Sort(schemes)
	// istiod ignores any other scheme with no more than a warning, and without k8s it no longer reads the cluster.
	if !slices.Equal(schemes, []string{"k8s", "xds"}) {
		t.Errorf("config sources: got %q, want k8s and xds", schemes)
	}
}

// TestBootstrap reads the plain Envoy's bootstrap as Envoy does, and holds it to the labels of the filter's metrics.
func TestBootstrap(t *testing.T) {
	asJSON, err := yaml.YAMLToJSONStrict(read(t, "bootstrap/envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrap.Bootstrap
	if err := protojson.Unmarshal(asJSON, &b); err != nil {
		t.Fatal(err)
	}
	if err := b.ValidateAll(); err != nil {
		t.Error(err)
	}
	var got []string
	for _, tag := range b.GetStatsConfig().GetStatsTags() {
		got = append(got, tag.GetTagName())
		if want := fmt.Sprintf(`(%s=\.=(.*?);\.;)`, tag.GetTagName()); tag.GetRegex() != want {
			t.Errorf("%s: got the expression %s, want %s", tag.GetTagName(), tag.GetRegex(), want)
		}
	}
	if !slices.Equal(got, config.StatTags) {
		t.Errorf("stats_tags: got %q, want config.StatTags %q", got, config.StatTags)
	}
}
