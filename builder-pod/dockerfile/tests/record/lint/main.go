// Records what BuildKit's linter says of the files that it is given, the same way as tests/record does it for what
// comes of them:
//
//	go run ./record/lint .../lint/*/*.Dockerfile .../tests/lint/* > .../tests/lint.txt
//
// What the context's ignore file leaves out is in tests/lint.rs as well.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

type resolver struct{}

func (resolver) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	p := *opt.ImageOpt.Platform
	if strings.Contains(ref, "other-platform") {
		p.Architecture = "s390x"
	}
	config := map[string]any{"architecture": p.Architecture, "os": p.OS,
		"config":  map[string]any{"Env": []string{"PATH=/usr/bin:/bin", "BASE=1"}, "Cmd": []string{"sh"}},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + strings.Repeat("1", 64)}},
		"history": []any{map[string]any{"created_by": "base"}}}
	if strings.Contains(ref, "rich") {
		config["config"].(map[string]any)["Shell"] = []string{"/bin/bash", "-c"}
	}
	dt, err := json.Marshal(config)
	return ref, digest.Digest("sha256:" + strings.Repeat("2", 64)), dt, err
}

func main() {
	for _, path := range os.Args[1:] {
		name := filepath.Base(filepath.Dir(path)) + "/" + filepath.Base(path)
		dt, err := os.ReadFile(path)
		if err != nil {
			panic(err)
		}
		p := platforms.MustParse("linux/amd64")
		caps := pb.Caps.CapSet(pb.Caps.All())
		opt := dockerfile2llb.ConvertOpt{
			Config:         dockerui.Config{BuildPlatforms: []ocispecs.Platform{p}},
			TargetPlatform: &p,
			MetaResolver:   resolver{},
			LLBCaps:        &caps,
			AllStages:      true,
			Warn: func(rule, description, url, msg string, location []parser.Range) {
				first, last := location[0].Start.Line, location[len(location)-1].End.Line
				fmt.Printf("%s: %s %d-%d %s | %s | %s\n", name, rule, first, last, msg, description, url)
			},
		}
		if _, err := dockerfile2llb.Dockerfile2LLB(context.TODO(), dt, opt); err != nil {
			fmt.Printf("%s: ERROR %v\n", name, err)
		}
	}
}
