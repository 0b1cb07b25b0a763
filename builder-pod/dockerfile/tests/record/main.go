// Records what BuildKit makes of the cases: run it where github.com/moby/buildkit is a dependency
// (cases were recorded with v0.34.2) on the Dockerfile of each case that it accepts:
//
//	go run ./record .../tests/cases/*/Dockerfile > .../tests/buildkit.txt
//	go run ./record .../tests/broken/*/Dockerfile > .../tests/broken.txt
//	go run ./record -short .../tests/projects/*/Dockerfile > .../tests/projects.txt
//	go run ./record -convert .../tests/cases/{mounts,copy-flags,heredocs,add-git,add-http,stages}/Dockerfile > .../tests/convert.txt
//
// With -short, all vertices of a file are one line, and their names are one digest.
//
// Configs of images are made up the same way as in tests/support.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
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
	p := opt.ImageOpt.Platform
	if strings.Contains(ref, "biuld") {
		return "", "", nil, fmt.Errorf("%s: not found", ref)
	}
	config := map[string]any{"architecture": p.Architecture, "os": p.OS,
		"config":  map[string]any{"Env": []string{"PATH=/usr/bin:/bin", "BASE=1"}, "Cmd": []string{"sh"}, "WorkingDir": ""},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + strings.Repeat("1", 64)}},
		"history": []any{map[string]any{"created_by": "base"}}}
	if p.Variant != "" {
		config["variant"] = p.Variant
	}
	c := config["config"].(map[string]any)
	if strings.Contains(ref, "onbuild") {
		c["OnBuild"] = []string{"COPY . /app", "RUN make"}
	}
	if strings.Contains(ref, "rich") {
		c["User"] = "app:1000"
		c["WorkingDir"] = "/srv"
		c["Entrypoint"] = []string{"/entry"}
		c["Labels"] = map[string]string{"a": "b"}
		c["Shell"] = []string{"/bin/bash", "-c"}
	}
	dt, err := json.Marshal(config)
	return ref, digest.Digest("sha256:" + strings.Repeat("2", 64)), dt, err
}

func main() {
	short := flag.Bool("short", false, "vertices as digests in one line")
	convert := flag.Bool("convert", false, "the answer to frontend.convertllb in one line")
	flag.Parse()
	for _, path := range flag.Args() {
		if err := one(path, *short, *convert); err != nil {
			fmt.Printf("%s: ERROR %v\n", filepath.Base(filepath.Dir(path)), err)
		}
	}
}

// unnumbered leaves out which stage and step a name is of: a vertex that is in several has the name of one of them.
func unnumbered(name string) string {
	if strings.HasPrefix(name, "[") && !strings.HasPrefix(name, "[internal]") {
		_, name, _ = strings.Cut(name, "] ")
	}
	return name
}

func one(path string, short, convert bool) error {
	name := filepath.Base(filepath.Dir(path))
	dt, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	args := map[string]string{}
	labels := map[string]string{}
	target := ""
	multi := false
	platform := "linux/amd64"
	if o, err := os.ReadFile(filepath.Join(filepath.Dir(path), "options")); err == nil {
		for _, line := range strings.Split(strings.TrimSpace(string(o)), "\n") {
			k, v, _ := strings.Cut(line, " ")
			switch k {
			case "arg":
				a, b, _ := strings.Cut(v, "=")
				args[a] = b
			case "label":
				a, b, _ := strings.Cut(v, "=")
				labels[a] = b
			case "target":
				target = v
			case "platform":
				platform = v
			case "multi":
				multi = true
			}
		}
	}
	p := platforms.MustParse(platform)
	caps := pb.Caps.CapSet(pb.Caps.All())
	opt := dockerfile2llb.ConvertOpt{
		Config: dockerui.Config{BuildArgs: args, Labels: labels, Target: target, MultiPlatformRequested: multi,
			BuildPlatforms: []ocispecs.Platform{platforms.MustParse("linux/amd64")}},
		TargetPlatform: &p,
		MetaResolver:   resolver{},
		LLBCaps:        &caps,
	}
	if convert {
		return showConverted(name, dt, opt)
	}
	res, err := dockerfile2llb.Dockerfile2LLB(context.TODO(), dt, opt)
	if err != nil {
		return err
	}
	def, err := res.State.Marshal(context.TODO(), llb.WithCaps(caps))
	if err != nil {
		return err
	}
	renamed := map[string]string{}
	var digests, names []string
	for i, b := range def.Def {
		var op pb.Op
		if err := proto.Unmarshal(b, &op); err != nil {
			return err
		}
		old := digest.FromBytes(b)
		if s := op.GetSource(); s != nil {
			delete(s.Attrs, "local.unique")
		}
		for _, in := range op.Inputs {
			in.Digest = renamed[in.Digest]
		}
		nb, err := proto.MarshalOptions{Deterministic: true}.Marshal(&op)
		if err != nil {
			return err
		}
		renamed[string(old)] = string(digest.FromBytes(nb))
		md := def.Metadata[old]
		if i < len(def.Def)-1 && short {
			digests = append(digests, digest.FromBytes(nb).Encoded()[:16])
			names = append(names, unnumbered(md.Description["llb.customname"]))
		} else if i < len(def.Def)-1 {
			fmt.Printf("%s: %s %s\n", name, digest.FromBytes(nb).Encoded()[:16], md.Description["llb.customname"])
		} else if len(op.Inputs) > 0 {
			fmt.Printf("%s: target %s\n", name, op.Inputs[0].Digest[7:23])
		}
	}
	if short {
		sort.Strings(digests)
		sort.Strings(names)
		fmt.Printf("%s: vertices %s\n", name, strings.Join(digests, " "))
		fmt.Printf("%s: names %s\n", name, digest.FromString(strings.Join(names, "\n")).Encoded()[:16])
	}
	res.Image.RootFS.DiffIDs = nil
	img, err := json.Marshal(res.Image)
	if err != nil {
		return err
	}
	fmt.Printf("%s: config %s\n", name, img)
	return nil
}

func showConverted(name string, dt []byte, opt dockerfile2llb.ConvertOpt) error {
	opt.SourceMap = llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", dt)
	result, err := dockerfile2llb.DockerfileConvertLLB(context.TODO(), dt, opt)
	if err != nil {
		return err
	}
	if result, err = steady(result); err != nil {
		return err
	}
	answer, err := json.Marshal(result)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s\n", name, answer)
	return nil
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
