// Records what BuildKit says of the targets and parameters of the files that it is given, as tests/record does it for
// what comes of them:
//
//	go run ./record/outline .../tests/outline/* > .../tests/outline.txt
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
	"github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/moby/buildkit/frontend/subrequests/outline"
	"github.com/moby/buildkit/frontend/subrequests/targets"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

type resolver struct{}

func (resolver) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	config := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("1", 64) + `"]}}`
	return ref, digest.Digest("sha256:" + strings.Repeat("2", 64)), []byte(config), nil
}

func main() {
	for _, path := range os.Args[1:] {
		name := filepath.Base(path)
		dt, err := os.ReadFile(path)
		if err != nil {
			panic(err)
		}
		list, err := dockerfile2llb.ListTargets(context.TODO(), dt)
		if err != nil {
			panic(err)
		}
		list.Sources = nil
		show(name, "targets", list.Targets)
		j, _ := json.Marshal(list)
		var b strings.Builder
		if err := targets.PrintTargets(j, &b); err != nil {
			panic(err)
		}
		show(name, "targets.txt", b.String())
		results := &lint.LintResults{}
		results.Sources = []*pb.SourceInfo{{Filename: "Dockerfile", Language: "Dockerfile", Data: dt}}
		lp := platforms.MustParse("linux/amd64")
		lcaps := pb.Caps.CapSet(pb.Caps.All())
		_, _ = dockerfile2llb.Dockerfile2LLB(context.TODO(), dt, dockerfile2llb.ConvertOpt{
			Config: dockerui.Config{BuildPlatforms: []ocispecs.Platform{lp}}, TargetPlatform: &lp,
			MetaResolver: resolver{}, LLBCaps: &lcaps, AllStages: true,
			Warn: func(rule, description, url, msg string, location []parser.Range) {
				results.AddWarning(rule, description, url, msg, 0, location)
			},
		})
		lj, _ := json.Marshal(results)
		var lb strings.Builder
		if err := lint.PrintLintViolations(lj, &lb, nil); err != nil {
			panic(err)
		}
		show(name, "lint.txt", lb.String())
		for _, target := range []string{"", "base", "build", "docs"} {
			p := platforms.MustParse("linux/amd64")
			caps := pb.Caps.CapSet(pb.Caps.All())
			o, err := dockerfile2llb.Dockerfile2Outline(context.TODO(), dt, dockerfile2llb.ConvertOpt{
				Config: dockerui.Config{Target: target, BuildArgs: map[string]string{"FLAGS": "-O2"},
					BuildPlatforms: []ocispecs.Platform{p}},
				TargetPlatform: &p,
				MetaResolver:   resolver{},
				LLBCaps:        &caps,
			})
			if err != nil {
				continue
			}
			o.Sources = nil
			show(name, "outline "+target, o)
			j, _ := json.Marshal(o)
			var b strings.Builder
			if err := outline.PrintOutline(j, &b); err != nil {
				panic(err)
			}
			show(name, "outline.txt "+target, b.String())
		}
	}
}

func show(name, what string, v any) {
	j, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s: %s: %s\n", name, strings.TrimSpace(what), j)
}
