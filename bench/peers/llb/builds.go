package main

import (
	"context"
	"os"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/llbbuild"
	"github.com/moby/buildkit/solver/pb"
)

var date = time.Unix(1600000000, 0).UTC()

func busybox(opts ...llb.ImageOption) llb.State {
	return llb.Image("docker.io/library/busybox:latest", opts...)
}

// sh is a step whose folder /out is the result.
func sh(script string, opts ...llb.RunOption) llb.State {
	return step(script, opts...).AddMount("/out", llb.Scratch())
}

func step(script string, opts ...llb.RunOption) llb.ExecState {
	return busybox().Run(append([]llb.RunOption{llb.Args([]string{"/bin/sh", "-ec", script})}, opts...)...)
}

func file(name, text string) llb.State {
	return llb.Scratch().File(llb.Mkfile(name, 0o644, []byte(text), llb.WithCreatedTime(date)))
}

var builds = map[string]func() llb.State{
	// Files.
	"mkfile": func() llb.State { return file("/a", "text\n") },
	"mkdir": func() llb.State {
		return llb.Scratch().File(llb.Mkdir("/a/b/c", 0o700, llb.WithParents(true), llb.WithCreatedTime(date)))
	},
	"mkdir-missing-parent": func() llb.State { return llb.Scratch().File(llb.Mkdir("/a/b", 0o755)) },
	"mkfile-owner": func() llb.State {
		return llb.Scratch().File(llb.Mkfile("/a", 0o4755, nil, llb.WithUIDGID(7, 8), llb.WithCreatedTime(date)))
	},
	"mkfile-user-name": func() llb.State {
		base := llb.Scratch().
			File(llb.Mkdir("/etc", 0o755).Mkfile("/etc/passwd", 0o644, []byte("ann:x:77:78::/:/bin/sh\n")))
		return base.File(llb.Mkfile("/a", 0o644, nil, llb.WithUser("ann"), llb.WithCreatedTime(date)))
	},
	"rm": func() llb.State {
		return file("/a", "1").File(llb.Mkfile("/b", 0o644, nil, llb.WithCreatedTime(date))).File(llb.Rm("/a"))
	},
	"rm-missing":       func() llb.State { return file("/a", "1").File(llb.Rm("/b")) },
	"rm-allow-missing": func() llb.State { return file("/a", "1").File(llb.Rm("/b", llb.WithAllowNotFound(true))) },
	"rm-wildcard": func() llb.State {
		return file("/a1", "1").File(llb.Mkfile("/a2", 0o644, nil).Mkfile("/b", 0o644, nil, llb.WithCreatedTime(date))).
			File(llb.Rm("/a*", llb.WithAllowWildcard(true)))
	},
	"symlink": func() llb.State {
		return file("/a", "1").File(llb.Symlink("/a", "/link", llb.WithCreatedTime(date)))
	},
	"copy": func() llb.State {
		return llb.Scratch().File(llb.Copy(file("/a", "1"), "/a", "/b", llb.WithCreatedTime(date)))
	},
	"copy-missing": func() llb.State { return llb.Scratch().File(llb.Copy(file("/a", "1"), "/none", "/b")) },
	"copy-missing-in-itself": func() llb.State {
		base := file("/a", "1")
		return base.File(llb.Copy(base, "/none", "/b"))
	},
	"copy-missing-parent":   func() llb.State { return llb.Scratch().File(llb.Copy(file("/a", "1"), "/a", "/b/c")) },
	"mkfile-missing-parent": func() llb.State { return llb.Scratch().File(llb.Mkfile("/a/b", 0o644, nil)) },
	"copy-wildcard": func() llb.State {
		from := file("/a1", "1").File(llb.Mkfile("/a2", 0o600, []byte("2"), llb.WithCreatedTime(date)).Mkfile("/b", 0o600, nil))
		return llb.Scratch().File(llb.Copy(from, "/a*", "/to/", &llb.CopyInfo{
			AllowWildcard: true, CreateDestPath: true, CreatedTime: &date,
		}))
	},
	"copy-wildcard-none": func() llb.State {
		return file("/a", "1").File(llb.Copy(file("/a", "1"), "/x*", "/to/", &llb.CopyInfo{
			AllowWildcard: true, AllowEmptyWildcard: true, CreateDestPath: true,
		}))
	},
	"copy-dir-contents": func() llb.State {
		from := llb.Scratch().File(llb.Mkdir("/d", 0o750).Mkfile("/d/f", 0o640, []byte("f"), llb.WithCreatedTime(date)))
		return llb.Scratch().File(llb.Copy(from, "/d", "/to", &llb.CopyInfo{
			CopyDirContentsOnly: true, CreateDestPath: true, CreatedTime: &date,
		}))
	},
	"copy-exclude": func() llb.State {
		from := file("/a.txt", "1").File(llb.Mkfile("/b.md", 0o644, nil).Mkfile("/c.txt", 0o644, nil, llb.WithCreatedTime(date)))
		return llb.Scratch().File(llb.Copy(from, "/", "/to/", &llb.CopyInfo{
			CopyDirContentsOnly: true, CreateDestPath: true, ExcludePatterns: []string{"*.md"}, CreatedTime: &date,
		}))
	},
	"copy-include": func() llb.State {
		from := file("/a.txt", "1").File(llb.Mkfile("/b.md", 0o644, nil))
		return llb.Scratch().File(llb.Copy(from, "/", "/to/", &llb.CopyInfo{
			CopyDirContentsOnly: true, CreateDestPath: true, IncludePatterns: []string{"*.txt"}, CreatedTime: &date,
		}))
	},
	"copy-chmod-chown": func() llb.State {
		mode := llb.ChmodOpt{Mode: 0o711}
		return llb.Scratch().File(llb.Copy(file("/a", "1"), "/a", "/b", &llb.CopyInfo{
			Mode: &mode, CreatedTime: &date, ChownOpt: &llb.ChownOpt{User: &llb.UserOpt{UID: 5}, Group: &llb.UserOpt{UID: 6}},
		}))
	},
	"copy-symbolic-mode": func() llb.State {
		mode := llb.ChmodOpt{ModeStr: "u=rwx,go=r"}
		return llb.Scratch().File(llb.Copy(file("/a", "1"), "/a", "/b", &llb.CopyInfo{Mode: &mode, CreatedTime: &date}))
	},
	"copy-unpack": func() llb.State {
		web := llb.HTTP(os.Getenv("HTTP")+"/context.tar.gz", llb.Filename("c.tar.gz"))
		return llb.Scratch().File(llb.Copy(web, "/c.tar.gz", "/to/", &llb.CopyInfo{
			AttemptUnpack: true, CreateDestPath: true, CreatedTime: &date,
		}))
	},
	"copy-outside": func() llb.State {
		return llb.Scratch().File(llb.Copy(file("/a", "1"), "/../../a", "/../b", llb.WithCreatedTime(date)))
	},

	// Steps.
	"exec":              func() llb.State { return sh("echo ok > /out/a") },
	"exec-fails":        func() llb.State { return sh("echo before >&2; exit 7") },
	"exec-not-found":    func() llb.State { return busybox().Run(llb.Args([]string{"/no/such"})).Root() },
	"exec-valid-exit":   func() llb.State { return sh("echo ok > /out/a; exit 3", llb.ValidExitCodes(3)) },
	"exec-env":          func() llb.State { return sh("echo $A$B > /out/a", llb.AddEnv("A", "1"), llb.AddEnv("B", "2")) },
	"exec-dir":          func() llb.State { return sh("pwd > /out/a", llb.Dir("/usr")) },
	"exec-dir-missing":  func() llb.State { return sh("pwd > /out/a", llb.Dir("/new/one")) },
	"exec-user":         func() llb.State { return sh("id -u > /tmp/a; cat /tmp/a > /out/a || cat /tmp/a", llb.User("0:0")) },
	"exec-user-unknown": func() llb.State { return sh("id", llb.User("nobody-knows")) },
	"exec-user-number":  func() llb.State { return busybox().Run(llb.Shlex("id -u"), llb.User("1234:5")).Root() },
	"exec-hostname":     func() llb.State { return sh("hostname > /out/a", llb.Hostname("here")) },
	"exec-hosts": func() llb.State {
		return sh("grep one.example /etc/hosts > /out/a", llb.AddExtraHost("one.example", []byte{10, 0, 0, 7}))
	},
	"exec-resources": func() llb.State {
		return sh("nproc > /out/a", llb.WithLinuxResources(llb.LinuxResources{Memory: 64 << 20, CPUShares: 512, CpusetCpus: "0"}))
	},
	"exec-resources-memory": func() llb.State {
		limits := llb.WithLinuxResources(llb.LinuxResources{Memory: 32 << 20, MemorySwap: 32 << 20})
		return step("dd if=/dev/zero of=/dev/null bs=100M count=1", limits).Root()
	},
	"exec-ulimit":       func() llb.State { return sh("ulimit -n > /out/a", llb.AddUlimit(llb.UlimitNofile, 123, 124)) },
	"exec-network-none": func() llb.State { return sh("ls /sys/class/net > /out/a", llb.Network(pb.NetMode_NONE)) },
	"exec-network-host": func() llb.State { return sh("echo ok > /out/a", llb.Network(pb.NetMode_HOST)) },
	"exec-insecure": func() llb.State {
		return sh("mkdir /m && mount -t tmpfs t /m && umount /m && echo ok > /out/a", llb.Security(pb.SecurityMode_INSECURE))
	},
	"exec-sandboxed":   func() llb.State { return sh("mkdir /m; mount -t tmpfs t /m 2>/dev/null || echo refused > /out/a") },
	"exec-root-result": func() llb.State { return step("rm -rf /bin/[ /etc/passwd /var; echo x > /new").Root() },
	"exec-readonly-root": func() llb.State {
		return sh("touch /x 2>/dev/null || echo refused > /out/a", llb.ReadonlyRootFS())
	},
	"exec-mount-ro": func() llb.State {
		return sh("touch /in/x 2>/dev/null || cat /in/a > /out/a", llb.AddMount("/in", file("/a", "in\n"), llb.Readonly))
	},
	"exec-mount-selector": func() llb.State {
		from := llb.Scratch().File(llb.Mkdir("/d", 0o755).Mkfile("/d/f", 0o644, []byte("f\n")))
		return sh("cat /in/f > /out/a", llb.AddMount("/in", from, llb.SourcePath("/d"), llb.Readonly))
	},
	"exec-mount-rw-result": func() llb.State {
		return step("echo more >> /in/a").AddMount("/in", file("/a", "in\n"))
	},
	"exec-tmpfs": func() llb.State {
		return sh("grep ' /t tmpfs' /proc/mounts | cut -d' ' -f3 > /out/a", llb.AddMount("/t", llb.Scratch(), llb.Tmpfs()))
	},
	"exec-tmpfs-size": func() llb.State {
		return sh("df -k /t | tail -1 | awk '{print $2}' > /out/a",
			llb.AddMount("/t", llb.Scratch(), llb.Tmpfs(llb.TmpfsSize(8<<20))))
	},
	"exec-cache-fill": func() llb.State {
		return sh("echo kept > /c/a; echo ok > /out/a", llb.AddMount("/c", llb.Scratch(), llb.AsPersistentCacheDir("llb-cache", llb.CacheMountShared)))
	},
	"exec-cache-use": func() llb.State {
		return sh("cat /c/a > /out/a", llb.AddMount("/c", llb.Scratch(), llb.AsPersistentCacheDir("llb-cache", llb.CacheMountLocked)))
	},
	"exec-secret": func() llb.State {
		return sh("stat -c '%a %u' /run/secrets/s > /out/a; cat /run/secrets/s >> /out/a", llb.AddSecret("/run/secrets/s", llb.SecretID("s")))
	},
	"exec-secret-optional": func() llb.State {
		return sh("test -e /s || echo none > /out/a", llb.AddSecret("/s", llb.SecretID("not-there"), llb.SecretOptional))
	},
	"exec-secret-missing": func() llb.State { return sh("true", llb.AddSecret("/s", llb.SecretID("not-there"))) },
	"exec-secret-env": func() llb.State {
		return sh("echo $TOKEN > /out/a", llb.AddSecretWithDest("s", nil, llb.SecretAsEnvName("TOKEN")))
	},
	"exec-ssh": func() llb.State {
		return sh("test -S $SSH_AUTH_SOCK && echo socket > /out/a", llb.AddSSHSocket())
	},
	"exec-ssh-missing": func() llb.State { return sh("true", llb.AddSSHSocket(llb.SSHID("not-there"))) },
	"exec-path-default": func() llb.State {
		return busybox().Run(llb.Args([]string{"sh", "-c", "echo $PATH > /out/a"})).AddMount("/out", llb.Scratch())
	},
	"exec-proxy": func() llb.State {
		return sh("echo $http_proxy $NO_PROXY > /out/a", llb.WithProxy(llb.ProxyEnv{HTTPProxy: "http://p.example", NoProxy: "n"}))
	},
	"exec-no-cache": func() llb.State { return sh("echo ok > /out/a", llb.IgnoreCache) },
	"exec-named":    func() llb.State { return sh("echo ok > /out/a", llb.WithCustomName("a step of mine")) },

	// Merge and diff.
	"merge": func() llb.State { return llb.Merge([]llb.State{file("/a", "1"), file("/b", "2"), file("/a", "3")}) },
	"merge-steps": func() llb.State {
		return llb.Merge([]llb.State{busybox(), step("echo 1 > /one").Root(), step("rm -r /etc/passwd; echo 2 > /two").Root()})
	},
	"diff": func() llb.State {
		lower := file("/a", "1")
		upper := lower.File(llb.Mkfile("/b", 0o644, []byte("2"), llb.WithCreatedTime(date)))
		return llb.Diff(lower, upper)
	},
	"diff-deletes": func() llb.State {
		lower := file("/a", "1").File(llb.Mkfile("/b", 0o644, nil, llb.WithCreatedTime(date)))
		return llb.Merge([]llb.State{lower, llb.Diff(lower, lower.File(llb.Rm("/a")))})
	},
	"diff-unrelated": func() llb.State { return llb.Diff(file("/a", "1"), file("/b", "2")) },
	"diff-scratch":   func() llb.State { return llb.Diff(llb.Scratch(), file("/b", "2")) },

	// Sources.
	"scratch": func() llb.State { return llb.Scratch() },
	"image":   func() llb.State { return busybox() },
	"image-missing": func() llb.State {
		return llb.Image(os.Getenv("REG") + "/no/such:1")
	},
	"local":         func() llb.State { return llb.Local("ctx") },
	"local-include": func() llb.State { return llb.Local("ctx", llb.IncludePatterns([]string{"a*"})) },
	"local-exclude": func() llb.State { return llb.Local("ctx", llb.ExcludePatterns([]string{"a*", "!ab"})) },
	"local-follow":  func() llb.State { return llb.Local("ctx", llb.FollowPaths([]string{"link"})) },
	"local-unknown": func() llb.State { return llb.Local("not-offered") },
	"http":          func() llb.State { return llb.HTTP(os.Getenv("HTTP") + "/file.txt") },
	"http-attributes": func() llb.State {
		return llb.HTTP(os.Getenv("HTTP")+"/file.txt", llb.Filename("f"), llb.Chmod(0o711), llb.Chown(3, 4))
	},
	"build": func() llb.State {
		inner, err := file("/inner", "built twice\n").Marshal(context.Background(), llb.LinuxAmd64)
		if err != nil {
			panic(err)
		}
		bytes, err := inner.ToPB().MarshalVT()
		if err != nil {
			panic(err)
		}
		return llb.Scratch().File(llb.Mkfile("/def", 0o644, bytes)).With(llbbuild.Build(llbbuild.WithFilename("/def")))
	},
	"build-missing": func() llb.State {
		return file("/other", "1").With(llbbuild.Build(llbbuild.WithFilename("/def")))
	},
	"http-headers": func() llb.State {
		header := llb.HTTPHeader{Accept: "text/plain", UserAgent: "somebody/1"}
		return llb.HTTP(os.Getenv("HTTP")+"/file.txt", llb.Header(header))
	},
	"oci-layout": func() llb.State {
		return llb.OCILayout(os.Getenv("LAYOUT"), llb.OCIStore("", "store"))
	},
	"http-missing": func() llb.State { return llb.HTTP(os.Getenv("HTTP") + "/none") },
	"http-checksum-wrong": func() llb.State {
		return llb.HTTP(os.Getenv("HTTP")+"/file.txt",
			llb.Checksum("sha256:0000000000000000000000000000000000000000000000000000000000000000"))
	},
	"git":         func() llb.State { return llb.Git(os.Getenv("GIT")+"/app.git", "main") },
	"git-tag":     func() llb.State { return llb.Git(os.Getenv("GIT")+"/app.git", "v1") },
	"git-subdir":  func() llb.State { return llb.Git(os.Getenv("GIT")+"/app.git", "main:sub") },
	"git-missing": func() llb.State { return llb.Git(os.Getenv("GIT")+"/app.git", "no-such-branch") },
	"git-keep": func() llb.State {
		from := llb.Git(os.Getenv("GIT")+"/app.git", "main", llb.KeepGitDir())
		return sh("ls -A /src > /out/a; cat /src/.git/HEAD >> /out/a", llb.AddMount("/src", from, llb.Readonly))
	},
}
