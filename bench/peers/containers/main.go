// Command containers is a client that asks a daemon for containers, as debuggers of builds do, and says what it found.
//
//	containers NAME
//
// The environment names the daemon: BUILDKIT_HOST.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

type scene func(context.Context, gateway.Client) error

var scenes = map[string]scene{
	"run":        run,
	"exit":       exit,
	"stdin":      stdin,
	"terminal":   terminal,
	"signal":     signal,
	"beside":     beside,
	"pipeline":   pipeline,
	"mounts":     mounts,
	"secret-env": secretEnv,
	"user":       user,
	"hosts":      hosts,
	"no-network": noNetwork,
	"files":      files,
	"failed":     failed,
	"failed-initial": func(ctx context.Context, c gateway.Client) error {
		return enter(ctx, c, func(e *errdefs.SolveError) []string { return e.InputIDs })
	},
	"failed-file": failedFile,
	"not-found":   notFound,
	"no-root":     noRoot,
	"released":    released,
	"left-open":   leftOpen,
	"many":        many,
	"services":    services,
}

func main() {
	if err := start(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func start(args []string) error {
	if len(args) != 1 || scenes[args[0]] == nil {
		names := make([]string, 0, len(scenes))
		for name := range scenes {
			names = append(names, name)
		}
		return fmt.Errorf("one name of %q", names)
	}
	ctx := context.Background()
	c, err := client.New(ctx, os.Getenv("BUILDKIT_HOST"))
	if err != nil {
		return err
	}
	defer c.Close()
	opt := client.SolveOpt{Session: []session.Attachable{
		secretsprovider.FromMap(map[string][]byte{"word": []byte("open sesame")}),
	}}
	_, err = c.Build(ctx, opt, "", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		return gateway.NewResult(), scenes[args[0]](ctx, c)
	}, nil)
	return err
}

func busybox() llb.State { return llb.Image("docker.io/library/busybox:latest") }

func solve(ctx context.Context, c gateway.Client, state llb.State) (gateway.Reference, error) {
	definition, err := state.Marshal(ctx, llb.LinuxAmd64)
	if err != nil {
		return nil, err
	}
	result, err := c.Solve(ctx, gateway.SolveRequest{Definition: definition.ToPB(), Evaluate: true})
	if err != nil {
		return nil, err
	}
	return result.SingleRef()
}

func container(ctx context.Context, c gateway.Client, more func(*gateway.NewContainerRequest)) (gateway.Container, error) {
	ref, err := solve(ctx, c, busybox())
	if err != nil {
		return nil, err
	}
	request := gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: ref}}}
	if more != nil {
		more(&request)
	}
	return c.NewContainer(ctx, request)
}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }

type program struct {
	gateway.ContainerProcess
	out, err *bytes.Buffer
}

func begin(ctx context.Context, ctr gateway.Container, request gateway.StartRequest) (*program, error) {
	p := &program{out: new(bytes.Buffer), err: new(bytes.Buffer)}
	request.Stdout, request.Stderr = closer{p.out}, closer{p.err}
	process, err := ctr.Start(ctx, request)
	p.ContainerProcess = process
	return p, err
}

// end says how a program ended, and what it printed.
func (p *program) end(what string) error {
	err := p.Wait()
	code := uint32(0)
	if exit := new(gatewaypb.ExitError); errors.As(err, &exit) {
		code, err = exit.ExitCode, nil
	}
	fmt.Printf("%s: exit %d\n", what, code)
	for _, stream := range []struct{ name, text string }{{"out", p.out.String()}, {"err", p.err.String()}} {
		if stream.text != "" {
			fmt.Printf("%s %s: %q\n", what, stream.name, stream.text)
		}
	}
	return err
}

func sh(script string) gateway.StartRequest {
	return gateway.StartRequest{Args: []string{"/bin/sh", "-c", script}, Env: []string{"A=of the caller"}}
}

func once(ctx context.Context, c gateway.Client, request gateway.StartRequest, more func(*gateway.NewContainerRequest)) error {
	ctr, err := container(ctx, c, more)
	if err != nil {
		return err
	}
	defer ctr.Release(ctx)
	p, err := begin(ctx, ctr, request)
	if err != nil {
		return err
	}
	return p.end("program")
}

func run(ctx context.Context, c gateway.Client) error {
	return once(ctx, c, sh(`echo "$A"; pwd; id -u; touch /new && ls /new; echo to err >&2`), nil)
}

func exit(ctx context.Context, c gateway.Client) error { return once(ctx, c, sh("exit 7"), nil) }

func stdin(ctx context.Context, c gateway.Client) error {
	request := sh("cat; echo end")
	request.Stdin = io.NopCloser(strings.NewReader(strings.Repeat("0123456789", 30000)))
	ctr, err := container(ctx, c, nil)
	if err != nil {
		return err
	}
	p, err := begin(ctx, ctr, request)
	if err != nil {
		return err
	}
	err = p.Wait()
	fmt.Println("bytes:", p.out.Len(), err)
	return ctr.Release(ctx)
}

func terminal(ctx context.Context, c gateway.Client) error {
	request := sh("tty; echo $TERM; read line; echo got $line; stty size")
	request.Tty = true
	reader, writer := io.Pipe()
	request.Stdin = reader
	ctr, err := container(ctx, c, nil)
	if err != nil {
		return err
	}
	shown, show := io.Pipe()
	request.Stdout, request.Stderr = show, closer{io.Discard}
	process, err := ctr.Start(ctx, request)
	if err != nil {
		return err
	}
	if err := process.Resize(ctx, gateway.WinSize{Rows: 40, Cols: 120}); err != nil {
		return err
	}
	lines := bufio.NewScanner(shown)
	for lines.Scan() {
		fmt.Printf("%q\n", lines.Text())
		if lines.Text() == "xterm" {
			fmt.Fprintln(writer, "a word")
		}
		if lines.Text() == "40 120" {
			break
		}
	}
	fmt.Println(process.Wait())
	writer.Close()
	return ctr.Release(ctx)
}

func signal(ctx context.Context, c gateway.Client) error {
	ctr, err := container(ctx, c, nil)
	if err != nil {
		return err
	}
	reader, writer := io.Pipe()
	request := sh(`trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done`)
	request.Stdout, request.Stderr = writer, closer{io.Discard}
	process, err := ctr.Start(ctx, request)
	if err != nil {
		return err
	}
	line := make([]byte, 6)
	if _, err := io.ReadFull(reader, line); err != nil {
		return err
	}
	if err := process.Signal(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	caught := make([]byte, 7)
	if _, err := io.ReadFull(reader, caught); err != nil {
		return err
	}
	fmt.Printf("%s", caught)
	fmt.Println(process.Wait())
	ctr.Release(ctx) // that the program did not end well is said here too
	return nil
}

func beside(ctx context.Context, c gateway.Client) error {
	ctr, err := container(ctx, c, nil)
	if err != nil {
		return err
	}
	reader, writer := io.Pipe()
	first := sh("echo here > /tmp/first; cat")
	first.Stdin = reader
	p, err := begin(ctx, ctr, first)
	if err != nil {
		return err
	}
	second, err := begin(ctx, ctr, sh("until [ -s /tmp/first ]; do sleep 0.1; done; cat /tmp/first; ps | grep -c '[c]at$'; echo x > /tmp/second"))
	if err != nil {
		return err
	}
	if err := second.end("second"); err != nil {
		return err
	}
	third, err := begin(ctx, ctr, gateway.StartRequest{Args: []string{"/bin/cat", "/tmp/second"}, User: "nobody", Cwd: "/tmp"})
	if err != nil {
		return err
	}
	if err := third.end("third"); err != nil {
		return err
	}
	writer.Close()
	if err := p.end("first"); err != nil {
		return err
	}
	return ctr.Release(ctx)
}

// pipeline starts pairs of programs of which the first may have ended before the second one has begun to take its output. The
// library hands messages on in their order: it waits for ever where the second one's start is told after the first one's end.
func pipeline(ctx context.Context, c gateway.Client) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the pipeline stands still"))
	defer cancel()
	ctr, err := container(ctx, c, nil)
	if err != nil {
		return err
	}
	idle, end := io.Pipe()
	first := sh("cat")
	first.Stdin = idle
	p, err := begin(ctx, ctr, first)
	if err != nil {
		return err
	}
	for range 40 {
		taker, giver := io.Pipe()
		from := gateway.StartRequest{Args: []string{"/bin/cat"}, Stdin: io.NopCloser(strings.NewReader("word\n")), Stdout: giver}
		left, err := ctr.Start(ctx, from)
		if err != nil {
			return err
		}
		to := sh("cat >> /tmp/words")
		to.Stdin = taker
		right, err := begin(ctx, ctr, to)
		if err != nil {
			return err
		}
		if err := left.Wait(); err != nil {
			return err
		}
		giver.Close()
		if err := right.Wait(); err != nil {
			return err
		}
	}
	words, err := begin(ctx, ctr, sh("wc -l < /tmp/words"))
	if err != nil {
		return err
	}
	if err := words.end("words"); err != nil {
		return err
	}
	end.Close()
	if err := p.end("first"); err != nil {
		return err
	}
	return ctr.Release(ctx)
}

func mounts(ctx context.Context, c gateway.Client) error {
	data, err := solve(ctx, c, llb.Scratch().File(llb.Mkdir("/d", 0o755).Mkfile("/d/f", 0o644, []byte("data"))))
	if err != nil {
		return err
	}
	script := `cat /data/d/f; touch /data/x 2>/dev/null || echo ro; cat /part/f; echo y > /part/z && cat /part/z
		cat /run/word; stat -c %a /run/word; df /mem | tail -1 | awk '{print $1}'; echo kept > /cache/k; cat /cache/k; ls -A /empty`
	return once(ctx, c, sh(script), func(request *gateway.NewContainerRequest) {
		request.Mounts = append(request.Mounts,
			gateway.Mount{Dest: "/data", MountType: pb.MountType_BIND, Ref: data, Readonly: true},
			gateway.Mount{Dest: "/part", MountType: pb.MountType_BIND, Ref: data, Selector: "/d"},
			gateway.Mount{Dest: "/mem", MountType: pb.MountType_TMPFS},
			gateway.Mount{Dest: "/cache", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: "ctr", Sharing: pb.CacheSharingOpt_SHARED}},
			gateway.Mount{Dest: "/run/word", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "word", Mode: 0o400}},
			gateway.Mount{Dest: "/empty", MountType: pb.MountType_BIND},
		)
	})
}

func secretEnv(ctx context.Context, c gateway.Client) error {
	request := sh(`echo "$WORD"; echo "${NONE-unset}"`)
	request.SecretEnv = []*pb.SecretEnv{{ID: "word", Name: "WORD"}, {ID: "none", Name: "NONE", Optional: true}}
	return once(ctx, c, request, nil)
}

func user(ctx context.Context, c gateway.Client) error {
	request := sh("id; pwd; touch /x || echo refused")
	request.User, request.Cwd = "1234:5", "/tmp"
	return once(ctx, c, request, nil)
}

func hosts(ctx context.Context, c gateway.Client) error {
	return once(ctx, c, sh("hostname; grep some /etc/hosts"), func(request *gateway.NewContainerRequest) {
		request.Hostname = "in-a-box"
		request.ExtraHosts = []*pb.HostIP{{Host: "some.where", IP: "10.9.8.7"}}
	})
}

func noNetwork(ctx context.Context, c gateway.Client) error {
	return once(ctx, c, sh("ls /sys/class/net"), func(request *gateway.NewContainerRequest) { request.NetMode = pb.NetMode_NONE })
}

func files(ctx context.Context, c gateway.Client) error {
	ctr, err := container(ctx, c, nil)
	if err != nil {
		return err
	}
	defer ctr.Release(ctx)
	stat, err := ctr.StatFile(ctx, gateway.StatContainerRequest{StatRequest: gateway.StatRequest{Path: "/bin/busybox"}})
	if err != nil {
		return err
	}
	fmt.Printf("%s %o\n", stat.Path, stat.Mode)
	p, err := begin(ctx, ctr, sh("echo written > /tmp/w"))
	if err != nil {
		return err
	}
	if err := p.end("write"); err != nil {
		return err
	}
	text, err := ctr.ReadFile(ctx, gateway.ReadContainerRequest{ReadRequest: gateway.ReadRequest{Filename: "/tmp/w"}})
	if err != nil {
		return err
	}
	fmt.Printf("%q\n", text)
	entries, err := ctr.ReadDir(ctx, gateway.ReadDirContainerRequest{ReadDirRequest: gateway.ReadDirRequest{Path: "/tmp"}})
	if err != nil {
		return err
	}
	for _, entry := range entries {
		fmt.Println(entry.Path)
	}
	return nil
}

var failing = func() llb.State {
	step := busybox().Run(llb.Args([]string{"/bin/sh", "-c", "echo got here > /far; echo out > /out/o; exit 9"}), llb.AddEnv("B", "of the step"))
	step.AddMount("/out", llb.Scratch())
	return step.Root()
}

func failed(ctx context.Context, c gateway.Client) error {
	return enter(ctx, c, func(e *errdefs.SolveError) []string { return e.MountIDs })
}

func enter(ctx context.Context, c gateway.Client, ids func(*errdefs.SolveError) []string) error {
	_, err := solve(ctx, c, failing())
	var solveError *errdefs.SolveError
	if !errors.As(err, &solveError) {
		return fmt.Errorf("it is no error of a step: %w", err)
	}
	fmt.Println(err)
	exec := solveError.Op.GetExec()
	fmt.Println(exec.Meta.Args, exec.Meta.Env[len(exec.Meta.Env)-1])
	request := gateway.NewContainerRequest{}
	for at, mount := range exec.Mounts {
		request.Mounts = append(request.Mounts, gateway.Mount{
			Dest: mount.Dest, MountType: mount.MountType, Readonly: mount.Readonly, ResultID: ids(solveError)[at],
		})
	}
	for range 2 {
		ctr, err := c.NewContainer(ctx, request)
		if err != nil {
			return err
		}
		p, err := begin(ctx, ctr, sh("cat /far /out/o; echo again > /again; ls /again"))
		if err != nil {
			return err
		}
		if err := p.end("entered"); err != nil {
			return err
		}
		if err := ctr.Release(ctx); err != nil {
			return err
		}
	}
	return nil
}

func failedFile(ctx context.Context, c gateway.Client) error {
	_, err := solve(ctx, c, busybox().File(llb.Copy(llb.Scratch(), "/none", "/x")))
	var solveError *errdefs.SolveError
	if !errors.As(err, &solveError) {
		return fmt.Errorf("it is no error of an operation: %w", err)
	}
	action, err := json.Marshal(solveError.Op.GetFile().GetActions()[0].GetCopy().GetSrc())
	fmt.Println(string(action))
	return err
}

func notFound(ctx context.Context, c gateway.Client) error {
	ctr, err := container(ctx, c, nil)
	if err != nil {
		return err
	}
	p, err := begin(ctx, ctr, gateway.StartRequest{Args: []string{"/no/such"}})
	if err == nil {
		err = p.Wait()
	}
	fmt.Println("refused:", err != nil)
	return nil
}

func noRoot(ctx context.Context, c gateway.Client) error {
	_, err := c.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/a", MountType: pb.MountType_TMPFS}}})
	if err == nil {
		return errors.New("it was made")
	}
	fmt.Println(strings.Contains(err.Error(), "root mount is required"))
	return nil
}

func released(ctx context.Context, c gateway.Client) error {
	ctr, err := container(ctx, c, nil)
	if err != nil {
		return err
	}
	p, err := begin(ctx, ctr, sh("sleep 1000"))
	if err != nil {
		return err
	}
	ctr.Release(ctx) // that the program did not end well is said here too
	fmt.Println("ended:", p.Wait() != nil)
	return nil
}

// leftOpen ends while a program runs: the build's end is the program's.
func leftOpen(ctx context.Context, c gateway.Client) error {
	ctr, err := container(ctx, c, nil)
	if err != nil {
		return err
	}
	_, err = begin(ctx, ctr, sh("sleep 1000"))
	fmt.Println("left")
	return err
}

func many(ctx context.Context, c gateway.Client) error {
	ctr, err := container(ctx, c, nil)
	if err != nil {
		return err
	}
	reader, writer := io.Pipe()
	first := sh("cat")
	first.Stdin = reader
	p, err := begin(ctx, ctr, first)
	if err != nil {
		return err
	}
	var all []*program
	for number := range 8 {
		one, err := begin(ctx, ctr, sh(fmt.Sprintf("i=0; while [ $i -lt 2000 ]; do echo line $i of %d; i=$((i+1)); done", number)))
		if err != nil {
			return err
		}
		all = append(all, one)
	}
	for _, one := range all {
		err := one.Wait()
		fmt.Println(strings.Count(one.out.String(), "\n"), err)
	}
	writer.Close()
	if err := p.end("first"); err != nil {
		return err
	}
	return ctr.Release(ctx)
}

// services says what the daemon tells of itself, and of the methods of a service.
func services(ctx context.Context, _ gateway.Client) error {
	conn, err := grpc.NewClient(os.Getenv("BUILDKIT_HOST"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := reflection.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	ask := func(request *reflection.ServerReflectionRequest) (*reflection.ServerReflectionResponse, error) {
		if err := stream.Send(request); err != nil {
			return nil, err
		}
		return stream.Recv()
	}
	list := &reflection.ServerReflectionRequest_ListServices{}
	answer, err := ask(&reflection.ServerReflectionRequest{MessageRequest: list})
	if err != nil {
		return err
	}
	var names []string
	for _, service := range answer.GetListServicesResponse().GetService() {
		names = append(names, service.Name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Println(name)
		symbol := &reflection.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name}
		answer, err := ask(&reflection.ServerReflectionRequest{MessageRequest: symbol})
		if err != nil {
			return err
		}
		if strings.HasPrefix(name, "moby.") {
			if err := methods(answer, name); err != nil {
				return err
			}
		}
	}
	return stream.CloseSend()
}

func methods(answer *reflection.ServerReflectionResponse, of string) error {
	for _, bytes := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
		var file descriptorpb.FileDescriptorProto
		if err := proto.Unmarshal(bytes, &file); err != nil {
			return err
		}
		for _, service := range file.Service {
			if file.GetPackage()+"."+service.GetName() != of {
				continue
			}
			for _, method := range service.Method {
				fmt.Println(" ", method.GetName(), method.GetInputType(), method.GetOutputType())
			}
		}
	}
	return nil
}
