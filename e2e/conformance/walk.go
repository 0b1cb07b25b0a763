package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/image-spec/schema"
)

// walk goes down from one document to all that it names.
type walk struct {
	report *report
	from   source
	seen   map[v1.Hash]bool
}

// manifest checks an image's manifest or an index, and all below.
func (w *walk) manifest(place string, descriptor v1.Descriptor) {
	if w.seen[descriptor.Digest] {
		return
	}
	w.seen[descriptor.Digest] = true
	content, err := w.from.manifest(descriptor.Digest)
	if err != nil {
		w.report.fail(place, err)
		return
	}
	if !w.document(place, descriptor, content) {
		return
	}
	var own struct{ MediaType types.MediaType }
	if err := json.Unmarshal(content, &own); err == nil && own.MediaType != "" && own.MediaType != descriptor.MediaType {
		w.report.fail(place, fmt.Errorf("says that it is %s, its descriptor says %s", own.MediaType, descriptor.MediaType))
	}
	if descriptor.MediaType.IsIndex() {
		w.children(place, content)
		return
	}
	w.image(place, descriptor, content)
}

// document checks a small JSON document's size, digest and schema.
func (w *walk) document(place string, descriptor v1.Descriptor, content []byte) bool {
	by, known := mediaTypes[descriptor.MediaType]
	err := same(descriptor, int64(len(content)), sha256.Sum256(content))
	if err == nil && !known {
		err = fmt.Errorf("no schema for media type %q", descriptor.MediaType)
	}
	if err == nil {
		err = by.Validate(bytes.NewReader(content))
	}
	if err != nil {
		w.report.fail(place, err)
		return false
	}
	w.report.ok(place, fmt.Sprintf("%s, %d bytes, valid by the schema of %s", descriptor.Digest, len(content), by))
	return true
}

// children checks each descriptor of an index by itself, then what it stands for.
func (w *walk) children(place string, index []byte) {
	var raw struct{ Manifests []json.RawMessage }
	if err := json.Unmarshal(index, &raw); err != nil {
		w.report.fail(place, err)
		return
	}
	if len(raw.Manifests) == 0 {
		w.report.fail(place, errors.New("names no manifest"))
	}
	for i, text := range raw.Manifests {
		child := fmt.Sprintf("%s manifests[%d]", place, i)
		if descriptor, ok := w.descriptor(child, text); ok {
			w.manifest(child, descriptor)
		}
	}
}

func (w *walk) descriptor(place string, text []byte) (v1.Descriptor, bool) {
	var descriptor v1.Descriptor
	err := schema.ValidatorMediaTypeDescriptor.Validate(bytes.NewReader(text))
	if err == nil {
		err = json.Unmarshal(text, &descriptor)
	}
	if err != nil {
		w.report.fail(place+" descriptor", err)
	}
	return descriptor, err == nil
}

// image checks config and layers, and lets go-containerregistry judge the whole.
func (w *walk) image(place string, descriptor v1.Descriptor, content []byte) {
	var manifest struct {
		Config json.RawMessage
		Layers []json.RawMessage
	}
	if err := json.Unmarshal(content, &manifest); err != nil {
		w.report.fail(place, err)
		return
	}
	config := w.config(place+" config", manifest.Config)
	if config == nil {
		return
	}
	if config.OS == "" || config.Architecture == "" {
		w.report.fail(place, errors.New("its config names no platform"))
	}
	if want := config.Platform(); descriptor.Platform != nil && !want.Equals(*descriptor.Platform) {
		w.report.fail(place, fmt.Errorf("its descriptor is for %s, its config for %s", descriptor.Platform, want))
	}
	if len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		w.report.fail(place, fmt.Errorf("%d layers, %d diff ids in the config", len(manifest.Layers), len(config.RootFS.DiffIDs)))
		return
	}
	if layers := historyLayers(config); len(config.History) > 0 && layers != len(manifest.Layers) {
		w.report.fail(place, fmt.Errorf("%d layers, %d of them in the config's history", len(manifest.Layers), layers))
	}
	gzipped := true
	for i, text := range manifest.Layers {
		child := fmt.Sprintf("%s layers[%d]", place, i)
		if layer, ok := w.descriptor(child, text); ok {
			gzipped = gzipped && strings.HasSuffix(string(layer.MediaType), "gzip")
			w.layer(child, layer, config.RootFS.DiffIDs[i])
		}
	}
	if !gzipped {
		return // go-containerregistry checks gzip alone
	}
	image, err := w.from.image(descriptor.Digest)
	if err == nil {
		err = validate.Image(image)
	}
	if err != nil {
		w.report.fail(place, err)
		return
	}
	w.report.ok(place, fmt.Sprintf("an image of %d layers, valid by go-containerregistry", len(manifest.Layers)))
}

func (w *walk) config(place string, text []byte) *v1.ConfigFile {
	descriptor, ok := w.descriptor(place, text)
	if !ok {
		return nil
	}
	w.seen[descriptor.Digest] = true
	reader, err := w.from.blob(descriptor.Digest)
	if err != nil {
		w.report.fail(place, err)
		return nil
	}
	defer reader.Close()
	content, err := io.ReadAll(reader)
	if err != nil {
		w.report.fail(place, err)
		return nil
	}
	if !w.document(place, descriptor, content) {
		return nil
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(content))
	if err != nil {
		w.report.fail(place, err)
		return nil
	}
	return config
}

func historyLayers(config *v1.ConfigFile) int {
	layers := 0
	for _, entry := range config.History {
		if !entry.EmptyLayer {
			layers++
		}
	}
	return layers
}

// layer checks a layer's bytes packed and unpacked, and that its archive reads to the end.
func (w *walk) layer(place string, descriptor v1.Descriptor, want v1.Hash) {
	w.seen[descriptor.Digest] = true
	entries, size, err := w.unpack(descriptor, want)
	if err != nil {
		w.report.fail(place, err)
		return
	}
	w.report.ok(place, fmt.Sprintf("%s, %d bytes, diff id %s, %d entries, %d bytes unpacked",
		descriptor.Digest, descriptor.Size, want, entries, size))
}

func (w *walk) unpack(descriptor v1.Descriptor, want v1.Hash) (entries int, size int64, err error) {
	blob, err := w.from.blob(descriptor.Digest)
	if err != nil {
		return 0, 0, err
	}
	defer blob.Close()
	packed, unpacked := newMeter(blob), (*meter)(nil)
	plain, err := decompress(descriptor.MediaType, packed)
	if err == nil {
		defer plain.Close()
		unpacked = newMeter(plain)
		entries, err = readArchive(unpacked)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, unpacked)
	}
	// What is wrong with the blob itself says more than what its reader stumbled on.
	if _, rest := io.Copy(io.Discard, packed); rest != nil {
		return 0, 0, rest
	}
	if wrong := same(descriptor, packed.size, packed.sum()); wrong != nil {
		return 0, 0, wrong
	}
	if err != nil {
		return 0, 0, err
	}
	if sum := unpacked.sum(); hex.EncodeToString(sum[:]) != want.Hex {
		return 0, 0, fmt.Errorf("diff id is sha256:%x, the config says %s", sum, want)
	}
	return entries, unpacked.size, nil
}

func decompress(kind types.MediaType, from io.Reader) (io.ReadCloser, error) {
	switch kind {
	case types.OCILayer, types.DockerLayer:
		return gzip.NewReader(from)
	case types.OCILayerZStd:
		reader, err := zstd.NewReader(from)
		if err != nil {
			return nil, err
		}
		return reader.IOReadCloser(), nil
	case types.OCIUncompressedLayer, types.DockerUncompressedLayer:
		return io.NopCloser(from), nil
	}
	return nil, fmt.Errorf("media type %q is none of a layer", kind)
}

// readArchive counts entries; a path twice in a layer means different things to different readers.
func readArchive(from io.Reader) (int, error) {
	seen := map[string]bool{}
	for reader := tar.NewReader(from); ; {
		header, err := reader.Next()
		switch {
		case errors.Is(err, io.EOF):
			return len(seen), nil
		case err != nil:
			return 0, fmt.Errorf("archive behind entry %d: %w", len(seen), err)
		case seen[filepath.Clean(header.Name)]:
			return 0, fmt.Errorf("path %q is there twice", header.Name)
		}
		seen[filepath.Clean(header.Name)] = true
	}
}

// strays checks blobs that nothing names: they are allowed, but must be what their name says.
func (w *walk) strays(blobs string) {
	err := filepath.WalkDir(blobs, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		hash := v1.Hash{Algorithm: filepath.Base(filepath.Dir(path)), Hex: entry.Name()}
		if w.seen[hash] {
			return nil
		}
		reader, err := w.from.blob(hash)
		if err != nil {
			return err
		}
		defer reader.Close()
		content := newMeter(reader)
		if _, err := io.Copy(io.Discard, content); err != nil {
			return err
		}
		if sum := content.sum(); hex.EncodeToString(sum[:]) != hash.Hex {
			w.report.fail("blob "+hash.String(), fmt.Errorf("named by nothing, and its digest is sha256:%x", sum))
			return nil
		}
		w.report.ok("blob "+hash.String(), "named by nothing")
		return nil
	})
	if err != nil {
		w.report.fail("blobs", err)
	}
}

func same(descriptor v1.Descriptor, size int64, sum [sha256.Size]byte) error {
	if size != descriptor.Size {
		return fmt.Errorf("%s has %d bytes, its descriptor says %d", descriptor.Digest, size, descriptor.Size)
	}
	if descriptor.Digest.Algorithm != "sha256" || hex.EncodeToString(sum[:]) != descriptor.Digest.Hex {
		return fmt.Errorf("digest is sha256:%x, its descriptor says %s", sum, descriptor.Digest)
	}
	return nil
}
