package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/image-spec/schema"
)

// source is where an image's bytes are. It checks nothing.
type source interface {
	manifest(v1.Hash) ([]byte, error)
	blob(v1.Hash) (io.ReadCloser, error)
	// image is the same image in the eyes of go-containerregistry.
	image(v1.Hash) (v1.Image, error)
}

type folder struct {
	root string
}

func (f folder) blob(hash v1.Hash) (io.ReadCloser, error) {
	return os.Open(filepath.Join(f.root, "blobs", hash.Algorithm, hash.Hex))
}

func (f folder) manifest(hash v1.Hash) ([]byte, error) {
	return os.ReadFile(filepath.Join(f.root, "blobs", hash.Algorithm, hash.Hex))
}

func (f folder) image(hash v1.Hash) (v1.Image, error) {
	return layout.Path(f.root).Image(hash)
}

type registry struct {
	repository name.Repository
}

func (r registry) blob(hash v1.Hash) (io.ReadCloser, error) {
	layer, err := remote.Layer(r.repository.Digest(hash.String()))
	if err != nil {
		return nil, err
	}
	return layer.Compressed()
}

func (r registry) manifest(hash v1.Hash) ([]byte, error) {
	got, err := remote.Get(r.repository.Digest(hash.String()))
	if err != nil {
		return nil, err
	}
	return got.Manifest, nil
}

func (r registry) image(hash v1.Hash) (v1.Image, error) {
	return remote.Image(r.repository.Digest(hash.String()))
}

// checkLayout checks a folder in the image layout, from its header down to the last layer.
func checkLayout(report *report, root string) {
	header := checkFile(report, root, "oci-layout", schema.ValidatorMediaTypeLayoutHeader)
	index := checkFile(report, root, "index.json", schema.ValidatorMediaTypeImageIndex)
	if header == nil || index == nil {
		return
	}
	walk := &walk{report: report, from: folder{root: root}, seen: map[v1.Hash]bool{}}
	walk.children("index.json", index)
	walk.strays(filepath.Join(root, "blobs"))
}

func checkFile(report *report, root, file string, by schema.Validator) []byte {
	content, err := os.ReadFile(filepath.Join(root, file))
	if err == nil {
		err = by.Validate(bytes.NewReader(content))
	}
	if err != nil {
		report.fail(file, err)
		return nil
	}
	report.ok(file, fmt.Sprintf("%d bytes, valid by the schema of %s", len(content), by))
	return content
}

// checkRegistry checks what a name in a registry stands for.
func checkRegistry(report *report, image string, insecure bool) {
	options := []name.Option{}
	if insecure {
		options = append(options, name.Insecure)
	}
	reference, err := name.ParseReference(image, options...)
	if err != nil {
		report.fail(image, err)
		return
	}
	got, err := remote.Get(reference)
	if err != nil {
		report.fail(image, err)
		return
	}
	walk := &walk{report: report, from: registry{reference.Context()}, seen: map[v1.Hash]bool{}}
	descriptor := v1.Descriptor{MediaType: got.MediaType, Digest: got.Digest, Size: got.Size}
	walk.manifest(image, descriptor)
}

// mediaTypes says which schema a document has to fulfil; Docker's documents have the shape of OCI's.
var mediaTypes = map[types.MediaType]schema.Validator{
	types.OCIImageIndex:         schema.ValidatorMediaTypeImageIndex,
	types.DockerManifestList:    schema.ValidatorMediaTypeImageIndex,
	types.OCIManifestSchema1:    schema.ValidatorMediaTypeManifest,
	types.DockerManifestSchema2: schema.ValidatorMediaTypeManifest,
	types.OCIConfigJSON:         schema.ValidatorMediaTypeImageConfig,
	types.DockerConfigJSON:      schema.ValidatorMediaTypeImageConfig,
}
