package build

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// progressEvery is how often a long build says how far it is.
const progressEvery = 20 * time.Second

// tailLinesMax bounds what is kept of a compiler's complaints.
const tailLinesMax = 40

// progress reads `go build -v`, which prints one import path for each package
// that it compiles, and turns it into a line now and then.
type progress struct {
	out     io.Writer
	total   int
	started time.Time
	stop    chan struct{}
	stopped chan struct{}

	mutex   sync.Mutex
	partial []byte
	count   int
	last    string
	other   []string
}

func newProgress(out io.Writer, total int) *progress {
	p := &progress{out: out, total: total, started: time.Now(), stop: make(chan struct{}), stopped: make(chan struct{})}
	go p.report()
	return p
}

func (p *progress) report() {
	defer close(p.stopped)
	ticker := time.NewTicker(progressEvery)
	defer ticker.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-ticker.C:
			fmt.Fprintln(p.out, "  "+p.line(time.Since(p.started)))
		}
	}
}

// line says how far the build is. Packages that the compiler's cache holds are
// never printed by it, so the total is an upper bound.
func (p *progress) line(elapsed time.Duration) string {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	elapsed = elapsed.Round(time.Second)
	switch {
	case p.count == 0:
		return fmt.Sprintf("%s: fetching modules and checking the compiler's cache", elapsed)
	case p.last == "command-line-arguments" || p.count >= p.total:
		return fmt.Sprintf("%s: %d packages compiled, linking", elapsed, p.count)
	default:
		return fmt.Sprintf("%s: %d of at most %d packages compiled, at %s", elapsed, p.count, p.total, p.last)
	}
}

// Write takes the compiler's output as it comes, lines cut anywhere.
func (p *progress) Write(text []byte) (int, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.partial = append(p.partial, text...)
	for {
		end := bytes.IndexByte(p.partial, '\n')
		if end < 0 {
			return len(text), nil
		}
		p.take(string(p.partial[:end]))
		p.partial = p.partial[end+1:]
	}
}

func (p *progress) take(line string) {
	line = strings.TrimSpace(line)
	if line == "" || strings.HasPrefix(line, "go: downloading ") {
		return
	}
	// An import path has no blanks and no colon; a complaint has both.
	if !strings.ContainsAny(line, " :\t") {
		p.count++
		p.last = line
		return
	}
	p.other = append(p.other, line)
	if len(p.other) > tailLinesMax {
		p.other = p.other[1:]
	}
}

func (p *progress) tail() string {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return strings.Join(p.other, "\n")
}

func (p *progress) close() {
	close(p.stop)
	<-p.stopped
}
