package images

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func testRegistry(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func digestOf(t *testing.T, reference string) v1.Hash {
	t.Helper()
	parsed, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Get(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return got.Digest
}

func TestLoadKeepsTheDigestOfEveryKindOfArchive(t *testing.T) {
	target := testRegistry(t)
	made, err := random.Image(2000, 3)
	if err != nil {
		t.Fatal(err)
	}
	want, err := made.Digest()
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), "layout")
	written, err := layout.Write(folder, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := written.AppendImage(made); err != nil {
		t.Fatal(err)
	}
	oci := filepath.Join(t.TempDir(), "oci.tar")
	archive(t, folder, oci)
	docker := filepath.Join(t.TempDir(), "docker.tar")
	if err := tarball.WriteToFile(docker, name.MustParseReference("example.org/x:1"), made); err != nil {
		t.Fatal(err)
	}
	for kind, path := range map[string]string{"folder": folder, "oci": oci} {
		if err := Load(context.Background(), path, target+"/load/"+kind+":1", Access{}); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if got := digestOf(t, target+"/load/"+kind+":1"); got != want {
			t.Errorf("%s: digest %s, want %s", kind, got, want)
		}
	}
	// A docker archive has no manifest of its own, so the digest is a new one.
	if err := Load(context.Background(), docker, target+"/load/docker:1", Access{}); err != nil {
		t.Fatal(err)
	}
	digestOf(t, target+"/load/docker:1")
}

// archive packs a folder as `tar -C FOLDER .` does.
func archive(t *testing.T, folder, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	writer := tar.NewWriter(file)
	if err := writer.AddFS(os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLoadRefusesWhatIsNoImageAndNamesThatLeadOutside(t *testing.T) {
	for what, file := range map[string]string{"neither": "readme", "unsafe name": "../index.json"} {
		var text bytes.Buffer
		writer := tar.NewWriter(&text)
		for _, name := range []string{"index.json", file} {
			if what == "neither" && name == "index.json" {
				continue
			}
			if err := writer.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}); err != nil {
				t.Fatal(err)
			}
		}
		writer.Close()
		path := filepath.Join(t.TempDir(), "x.tar")
		if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		err := Load(context.Background(), path, "127.0.0.1:1/x:1", Access{})
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestTheSameTreeGivesTheSameValidImage(t *testing.T) {
	build := func() v1.Image {
		t.Helper()
		only, err := writeLayer(filepath.Join(t.TempDir(), "layer"), func(out io.Writer) error {
			writer := tar.NewWriter(out)
			if err := busyboxTree(writer, []byte("program"), []string{"busybox", "sh", "ls"}); err != nil {
				return err
			}
			return writer.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
		made, err := image("amd64", v1.Config{Cmd: []string{"sh"}}, only)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	one, other := build(), build()
	if err := validate.Image(one); err != nil {
		t.Error(err)
	}
	a, _ := one.Digest()
	b, _ := other.Digest()
	if a != b {
		t.Errorf("digests differ: %s and %s", a, b)
	}
}

func TestOnlySettingsOfPackageClientsGoIntoAnImage(t *testing.T) {
	got := environment([]string{"HOME=/root", "TOKEN=secret", "https_proxy=http://proxy.example:3128"})
	if !slices.Contains(got, "https_proxy=http://proxy.example:3128") {
		t.Error("the proxy is missing")
	}
	for _, variable := range got {
		if strings.HasPrefix(variable, "HOME=") || strings.HasPrefix(variable, "TOKEN=") {
			t.Errorf("%s does not belong into an image", variable)
		}
	}
}

func TestReferenceAddsTheRegistryOnlyWhereThereIsNone(t *testing.T) {
	for given, want := range map[string]string{
		"tool:1": "r:5000/tool:1", "tests/tool:1": "r:5000/tests/tool:1", "other.example/tool:1": "other.example/tool:1", "r:5000/x": "r:5000/x",
	} {
		if got := Reference("r:5000", given); got != want {
			t.Errorf("%s gives %s, want %s", given, got, want)
		}
	}
}
