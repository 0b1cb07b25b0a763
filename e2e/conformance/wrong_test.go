package main

import (
	"bytes"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func layerOf(path string) (v1.Layer, error) {
	return tarball.LayerFromFile(path)
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
