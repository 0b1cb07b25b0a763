package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	server "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func archive(paths ...string) []byte {
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, path := range paths {
		if err := writer.WriteHeader(&tar.Header{Name: path, Typeflag: tar.TypeReg, Mode: 0o644, Size: 4}); err != nil {
			panic(err)
		}
		must(writer.Write([]byte("text")))
	}
	if err := writer.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func image(paths ...string) v1.Image {
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	config := must(image.ConfigFile()).DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	image = must(mutate.ConfigFile(image, config))
	layer := static.NewLayer(archive(paths...), types.OCIUncompressedLayer)
	return must(mutate.Append(image, mutate.Addendum{Layer: layer, MediaType: types.OCIUncompressedLayer}))
}

// gzipped is an image that go-containerregistry compressed itself.
func gzipped() v1.Image {
	content := archive("a", "b/c")
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
	layer := must(tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer)))
	config := must(empty.Image.ConfigFile()).DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	image := must(mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), config))
	return must(mutate.AppendLayers(mutate.ConfigMediaType(image, types.OCIConfigJSON), layer))
}

func write(t *testing.T, image v1.Image) string {
	t.Helper()
	root := t.TempDir()
	path := must(layout.Write(root, empty.Index))
	if err := path.AppendImage(image); err != nil {
		t.Fatal(err)
	}
	return root
}

func validateLayout(arguments ...string) (int, string, string) {
	var out, failures bytes.Buffer
	code := run(arguments, &out, &failures)
	return code, out.String(), failures.String()
}

func TestAGoodLayoutHasALineForEachDocument(t *testing.T) {
	code, out, failures := validateLayout(write(t, gzipped()))
	if code != 0 || failures != "" {
		t.Fatalf("code %d\n%s%s", code, out, failures)
	}
	for _, place := range []string{"oci-layout:", "index.json:", "manifests[0]:", "config:", "layers[0]:", "an image of 1 layers"} {
		if !strings.Contains(out, place) {
			t.Errorf("no line of %s in\n%s", place, out)
		}
	}
}

func TestADamagedLayoutIsRefusedAtItsPlace(t *testing.T) {
	for claim, test := range map[string]struct {
		damage func(t *testing.T, root string)
		place  string
		why    string
	}{
		"no header":                    {remove("oci-layout"), "oci-layout", "no such file"},
		"a header of another version":  {replace("oci-layout", `{"imageLayoutVersion":"9"}`), "oci-layout", "imageLayoutVersion"},
		"an index without its version": {replace("index.json", `{"manifests":[]}`), "index.json", "schemaVersion"},
		"an index of nothing":          {replace("index.json", `{"schemaVersion":2,"manifests":[]}`), "index.json", "names no manifest"},
		"a manifest that is missing":   {onBlob("manifest", os.Remove), "manifests[0]", "no such file"},
		"a flipped byte in a layer":    {onBlob("layer", flip), "layers[0]", "digest is"},
		"a layer that is cut short":    {onBlob("layer", cut), "layers[0]", "bytes, its descriptor says"},
		"a config that was edited":     {onBlob("config", flip), "config", "digest is"},
		"a stray blob with a wrong name": {
			replace("blobs/sha256/"+strings.Repeat("a", 64), "text"), "blob sha256:aaaa", "named by nothing"},
	} {
		t.Run(claim, func(t *testing.T) {
			root := write(t, image("a"))
			test.damage(t, root)
			code, out, failures := validateLayout(root)
			if code != 1 || !strings.Contains(failures, "WRONG ") || !strings.Contains(failures, test.place) || !strings.Contains(failures, test.why) {
				t.Errorf("code %d, wanted %q and %q\n%s%s", code, test.place, test.why, out, failures)
			}
		})
	}
}

func TestAnImageThatIsWrongInItselfIsRefused(t *testing.T) {
	for claim, test := range map[string]struct {
		image v1.Image
		why   string
	}{
		"a diff id of another layer": {edited(func(config *v1.ConfigFile) { config.RootFS.DiffIDs[0].Hex = strings.Repeat("b", 64) }), "diff id is"},
		"a diff id too many": {edited(func(config *v1.ConfigFile) {
			config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, config.RootFS.DiffIDs[0])
		}), "1 layers, 2 diff ids"},
		"a history without a layer":     {edited(func(config *v1.ConfigFile) { config.History[0].EmptyLayer = true }), "0 of them in the config's history"},
		"an environment without a name": {edited(func(config *v1.ConfigFile) { config.Config.Env = []string{"nonsense"} }), "unexpected env"},
		"no platform":                   {edited(func(config *v1.ConfigFile) { config.Architecture = "" }), "no platform"},
		"a path twice in a layer":       {image("a", "./a"), "twice"},
	} {
		t.Run(claim, func(t *testing.T) {
			code, out, failures := validateLayout(write(t, test.image))
			if code != 1 || !strings.Contains(failures, test.why) {
				t.Errorf("code %d, wanted %q\n%s%s", code, test.why, out, failures)
			}
		})
	}
}

func TestAnImageInARegistryIsCheckedByTagAndDigest(t *testing.T) {
	host := httptest.NewServer(server.New(server.Logger(log.New(io.Discard, "", 0))))
	defer host.Close()
	repository := strings.TrimPrefix(host.URL, "http://") + "/some/image"
	good := gzipped()
	if err := remote.Write(must(name.ParseReference(repository+":1", name.Insecure)), good); err != nil {
		t.Fatal(err)
	}
	for _, reference := range []string{repository + ":1", repository + "@" + must(good.Digest()).String()} {
		if code, out, failures := validateLayout("--insecure", "--registry", reference); code != 0 {
			t.Errorf("%s\n%s%s", reference, out, failures)
		}
	}
	if code, _, failures := validateLayout("--insecure", "--registry", repository+":2"); code != 1 || !strings.Contains(failures, ":2") {
		t.Errorf("code %d %s", code, failures)
	}
}

func TestAWrongCallShowsTheUsage(t *testing.T) {
	for _, arguments := range [][]string{{}, {"a", "b"}, {"--registry", "a", "b"}, {"--nonsense"}} {
		if code, _, failures := validateLayout(arguments...); code != 2 || !strings.Contains(failures, "usage") {
			t.Errorf("%v: code %d, %s", arguments, code, failures)
		}
	}
}

func edited(edit func(*v1.ConfigFile)) v1.Image {
	image := image("a")
	config := must(image.ConfigFile()).DeepCopy()
	edit(config)
	raw := must(json.Marshal(config))
	return rawConfig{image, raw}
}

func remove(file string) func(*testing.T, string) {
	return func(_ *testing.T, root string) { must(0, os.Remove(filepath.Join(root, file))) }
}

func replace(file, content string) func(*testing.T, string) {
	return func(_ *testing.T, root string) {
		must(0, os.WriteFile(filepath.Join(root, file), []byte(content), 0o600))
	}
}

// onBlob finds the image's manifest, config or layer, and does something to its file.
func onBlob(what string, change func(string) error) func(*testing.T, string) {
	return func(t *testing.T, root string) {
		index := must(must(layout.FromPath(root)).ImageIndex())
		digest := must(index.IndexManifest()).Manifests[0].Digest
		manifest := must(must(index.Image(digest)).Manifest())
		digest = map[string]v1.Hash{"manifest": digest, "config": manifest.Config.Digest, "layer": manifest.Layers[0].Digest}[what]
		must(0, change(filepath.Join(root, "blobs", "sha256", digest.Hex)))
	}
}

func flip(path string) error {
	content := must(os.ReadFile(path))
	content[len(content)/2] ^= 1
	return os.WriteFile(path, content, 0o600)
}

func cut(path string) error {
	return os.Truncate(path, must(os.Stat(path)).Size()-1)
}

// rawConfig is an image with a config that need not fit it; its manifest names that config truly.
type rawConfig struct {
	v1.Image
	config []byte
}

func (i rawConfig) RawConfigFile() ([]byte, error)      { return i.config, nil }
func (i rawConfig) ConfigFile() (*v1.ConfigFile, error) { return partial.ConfigFile(i) }
func (i rawConfig) ConfigName() (v1.Hash, error)        { return partial.ConfigName(i) }
func (i rawConfig) Digest() (v1.Hash, error)            { return partial.Digest(i) }
func (i rawConfig) Size() (int64, error)                { return partial.Size(i) }
func (i rawConfig) RawManifest() ([]byte, error)        { return partial.RawManifest(i) }

func (i rawConfig) Manifest() (*v1.Manifest, error) {
	manifest := must(i.Image.Manifest()).DeepCopy()
	var err error
	manifest.Config.Digest, manifest.Config.Size, err = v1.SHA256(bytes.NewReader(i.config))
	return manifest, err
}
