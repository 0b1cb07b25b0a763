package main

import (
	"os"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/opencontainers/go-digest"
)

// env is what the environment says, without the line's end.
func env(name string) string { return strings.TrimSuffix(os.Getenv(name), "\n") }

// git is a repository of the Git server with attributes that the client library has no words for.
func git(ref string, attrs map[string]string) llb.State {
	url := env("GIT") + "/app.git"
	attrs["git.fullurl"] = url
	_, bare, _ := strings.Cut(url, "://")
	return llb.NewState(llb.NewSource("git://"+bare+"#"+ref, attrs, llb.Constraints{}).Output())
}

// signed is a commit that must be signed by the key SIGNER.
func signed(ref string, more ...string) llb.State {
	attrs := map[string]string{"git.sig.pubkey": env("SIGNER")}
	for _, name := range more {
		attrs["git.sig."+name] = "true"
	}
	return git(ref, attrs)
}

func init() {
	for name, build := range map[string]func() llb.State{
		"passthrough": func() llb.State {
			return llb.NewPassthrough("p", []llb.PassthroughInput{
				{State: sh("echo made > /out/a"), Output: false},
				{State: file("/b", "handed on\n"), Output: true},
			})
		},
		"passthrough-second": func() llb.State {
			op := llb.NewPassthroughOp("p", []llb.PassthroughInput{
				{State: file("/a", "1\n"), Output: true},
				{State: file("/b", "2\n"), Output: true},
			})
			return llb.NewState(op.OutputAt(1))
		},
		"passthrough-fails": func() llb.State {
			return llb.NewPassthrough("p", []llb.PassthroughInput{
				{State: sh("exit 9"), Output: false},
				{State: file("/b", "handed on\n"), Output: true},
			})
		},

		"image-layers":          func() llb.State { return busybox(llb.WithLayerLimit(1)) },
		"image-layers-too-many": func() llb.State { return busybox(llb.WithLayerLimit(7)) },
		"image-checksum":        func() llb.State { return busybox(llb.WithImageChecksum(digest.Digest(env("SUM")))) },
		"image-blob":            func() llb.State { return llb.ImageBlob(env("BLOB")) },
		"image-blob-attributes": func() llb.State {
			return llb.ImageBlob(env("BLOB"), llb.Filename("b"), llb.Chmod(0o640), llb.Chown(3, 4))
		},
		"layout-blob": func() llb.State {
			return llb.OCILayoutBlob(env("BLOB"), llb.ImageBlobOCIStore("", "store"), llb.Filename("b"))
		},

		"http-signed": func() llb.State {
			return llb.HTTP(env("HTTP")+"/file.txt", llb.VerifyPGPSignature(llb.HTTPSignatureInfo{
				PubKey: []byte(os.Getenv("KEY")), Signature: []byte(os.Getenv("SIGNATURE")),
			}))
		},

		"git-signed":            func() llb.State { return signed("signed") },
		"git-signed-tag":        func() llb.State { return signed("signed-tag-of-main", "requiresignedtag") },
		"git-signed-tag-plain":  func() llb.State { return signed("unsigned-tag") },
		"git-signed-tag-wanted": func() llb.State { return signed("unsigned-tag", "requiresignedtag") },
		"git-signed-tag-passed": func() llb.State { return signed("signed-tag-of-main", "ignoresignedtag") },
		"git-unsigned":          func() llb.State { return signed("main") },
		"git-mtime": func() llb.State {
			return llb.Git(env("GIT")+"/app.git", "main", llb.GitMTimeCommit())
		},
		"git-bundle": func() llb.State {
			return llb.Git(env("GIT")+"/app.git", "main", llb.GitChecksum(env("COMMIT")),
				llb.GitBundleURL("oci-layout+blob://"+env("BLOB"), llb.GitBundleOCIStore("", "store")))
		},
		"git-bundle-without-checksum": func() llb.State {
			return git("main", map[string]string{"git.bundle": "oci-layout+blob://example.com/store@sha256:" + strings.Repeat("0", 64)})
		},
		"git-checkout-bundle": func() llb.State {
			return llb.Git(env("GIT")+"/app.git", "v1", llb.GitChecksum(env("COMMIT")), llb.GitCheckoutBundle())
		},

		"exec-content-cache": func() llb.State {
			return sh("cat /proc/sys/kernel/random/uuid > /out/a",
				llb.AddMount("/in", file("/a", env("TEXT")).File(llb.Rm("/a")).File(llb.Mkfile("/b", 0o644, nil, llb.WithCreatedTime(date))),
					llb.Readonly, llb.ContentCache(llb.MountContentCacheOn)))
		},
		"exec-content-cache-off": func() llb.State {
			return sh("cat /proc/sys/kernel/random/uuid > /out/a",
				llb.AddMount("/in", file("/a", env("TEXT")).File(llb.Rm("/a")).File(llb.Mkfile("/b", 0o644, nil, llb.WithCreatedTime(date))),
					llb.Readonly, llb.ContentCache(llb.MountContentCacheOff)))
		},
		"exec-mount-selector-other": func() llb.State {
			from := llb.Scratch().File(llb.Mkdir("/d", 0o755, llb.WithCreatedTime(date)).
				Mkfile("/d/f", 0o644, []byte("f\n"), llb.WithCreatedTime(date)).
				Mkfile("/other", 0o644, []byte(env("TEXT")), llb.WithCreatedTime(date)))
			return sh("cat /proc/sys/kernel/random/uuid > /out/a", llb.AddMount("/in", from, llb.SourcePath("/d"), llb.Readonly))
		},
	} {
		builds[name] = build
	}
}
