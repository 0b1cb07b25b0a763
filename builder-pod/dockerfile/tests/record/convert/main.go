// Records what BuildKit answers to frontend.convertllb for the cases that it is given, as tests/record does it for what
// comes of them:
//
//	go run ./record/convert .../tests/cases/{mounts,copy-flags,...}/Dockerfile > .../tests/convert.txt
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/buildkit/frontend/subrequests/convertllb"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
)

type resolver struct{}

func (resolver) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	config := `{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/bin:/bin","BASE=1"],"Cmd":["sh"]},` +
		`"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("1", 64) + `"]},"history":[{"created_by":"base"}]}`
	return ref, digest.Digest("sha256:" + strings.Repeat("2", 64)), []byte(config), nil
}

func main() {
	for _, path := range os.Args[1:] {
		dt, err := os.ReadFile(path)
		if err != nil {
			panic(err)
		}
		p := platforms.MustParse("linux/amd64")
		caps := pb.Caps.CapSet(pb.Caps.All())
		result, err := dockerfile2llb.DockerfileConvertLLB(context.TODO(), dt, dockerfile2llb.ConvertOpt{
			Config:         dockerui.Config{BuildPlatforms: []ocispecs.Platform{p}},
			TargetPlatform: &p,
			MetaResolver:   resolver{},
			LLBCaps:        &caps,
			SourceMap:      llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", dt),
		})
		if err != nil {
			panic(err)
		}
		if result, err = steady(result); err != nil {
			panic(err)
		}
		answer, err := json.Marshal(result)
		if err != nil {
			panic(err)
		}
		fmt.Printf("%s: %s\n", filepath.Base(filepath.Dir(path)), answer)
	}
}

// steady leaves out what is another one in each run, and names the operations anew.
func steady(result *convertllb.Result) (*convertllb.Result, error) {
	out := &convertllb.Result{
		Def:      map[digest.Digest]*pb.Op{},
		Metadata: map[digest.Digest]llb.OpMetadata{},
		Source:   &pb.Source{Infos: result.Source.Infos, Locations: map[string]*pb.Locations{}},
	}
	renamed := map[digest.Digest]digest.Digest{}
	var rename func(old digest.Digest) (digest.Digest, error)
	rename = func(old digest.Digest) (digest.Digest, error) {
		if name, ok := renamed[old]; ok {
			return name, nil
		}
		op := result.Def[old]
		if source := op.GetSource(); source != nil {
			delete(source.Attrs, "local.unique")
		}
		for _, input := range op.Inputs {
			name, err := rename(digest.Digest(input.Digest))
			if err != nil {
				return "", err
			}
			input.Digest = string(name)
		}
		dt, err := proto.MarshalOptions{Deterministic: true}.Marshal(op)
		if err != nil {
			return "", err
		}
		name := digest.FromBytes(dt)
		renamed[old] = name
		out.Def[name] = op
		out.Metadata[name] = result.Metadata[old]
		if locations, ok := result.Source.Locations[string(old)]; ok {
			out.Source.Locations[string(name)] = locations
		}
		return name, nil
	}
	for old := range result.Def {
		if _, err := rename(old); err != nil {
			return nil, err
		}
	}
	return out, nil
}
