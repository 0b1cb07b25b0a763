package images

import (
	"archive/tar"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// pushJobs is how many blobs travel at once.
const pushJobs = 4

// Access says how a registry is reached. The zero value is plain HTTP, for
// anybody.
type Access struct {
	// CA is the PEM text of the certificate that signed the registry's.
	CA             []byte
	User, Password string
}

// Load puts an image into a registry. The image is an OCI layout (a folder or
// its archive) or a `docker save` archive.
func Load(ctx context.Context, path, reference string, access Access) error {
	how := []name.Option{name.StrictValidation}
	if access.CA == nil {
		how = append(how, name.Insecure)
	}
	parsed, err := name.ParseReference(reference, how...)
	if err != nil {
		return err
	}
	target := destination{parsed, access}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return loadLayout(ctx, path, target)
	}
	docker, err := holds(path, "manifest.json")
	if err != nil {
		return err
	}
	oci, err := holds(path, "index.json")
	if err != nil {
		return err
	}
	switch {
	case oci:
		folder, err := os.MkdirTemp("", "lapstrake-load-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(folder)
		if err := extract(path, folder); err != nil {
			return err
		}
		return loadLayout(ctx, folder, target)
	case docker:
		image, err := tarball.ImageFromPath(path, nil)
		if err != nil {
			return err
		}
		return pushImage(ctx, target, image)
	default:
		return fmt.Errorf("%s is neither an OCI layout nor a docker archive: it has no index.json and no manifest.json", path)
	}
}

// destination is a name in a registry and the way there.
type destination struct {
	name.Reference
	access Access
}

func (d destination) options(ctx context.Context) []remote.Option {
	// A transport of its own: the machine's proxy is not for the cluster.
	transport := &http.Transport{MaxIdleConnsPerHost: pushJobs}
	if d.access.CA != nil {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(d.access.CA)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithJobs(pushJobs), remote.WithTransport(transport)}
	if d.access.User != "" {
		options = append(options, remote.WithAuth(&authn.Basic{Username: d.access.User, Password: d.access.Password}))
	}
	return options
}

func pushImage(ctx context.Context, target destination, image v1.Image) error {
	return remote.Write(target, image, target.options(ctx)...)
}

// loadLayout pushes what a layout's index names: the image itself when it names
// one image, else the index as it is.
func loadLayout(ctx context.Context, folder string, target destination) error {
	index, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if len(manifest.Manifests) != 1 {
		return remote.WriteIndex(target, index, target.options(ctx)...)
	}
	only := manifest.Manifests[0]
	if only.MediaType.IsIndex() {
		nested, err := index.ImageIndex(only.Digest)
		if err != nil {
			return err
		}
		return remote.WriteIndex(target, nested, target.options(ctx)...)
	}
	image, err := index.Image(only.Digest)
	if err != nil {
		return err
	}
	return pushImage(ctx, target, image)
}

// holds tells whether an archive has a file of this name at its top.
func holds(archive, want string) (bool, error) {
	found := false
	err := each(archive, func(header *tar.Header, _ io.Reader) error {
		if filepath.Clean(header.Name) == want {
			found = true
			return errEnough
		}
		return nil
	})
	return found, err
}

var errEnough = errors.New("enough")

func each(archive string, visit func(*tar.Header, io.Reader) error) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	reader := tar.NewReader(file)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", archive, err)
		}
		if err := visit(header, reader); errors.Is(err, errEnough) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// extract unpacks the plain files of an archive. Names that lead out of the
// folder are refused.
func extract(archive, folder string) error {
	return each(archive, func(header *tar.Header, content io.Reader) error {
		if header.Typeflag != tar.TypeReg {
			return nil
		}
		relative := filepath.Clean(header.Name)
		if !filepath.IsLocal(relative) {
			return fmt.Errorf("%s holds the unsafe name %q", archive, header.Name)
		}
		path := filepath.Join(folder, relative)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		if _, err := io.Copy(file, content); err != nil {
			file.Close()
			return err
		}
		return file.Close()
	})
}

// Reference completes a name with the registry, unless it has one.
func Reference(registry, image string) string {
	first, _, found := strings.Cut(image, "/")
	if found && strings.ContainsAny(first, ".:") {
		return image
	}
	return registry + "/" + image
}
