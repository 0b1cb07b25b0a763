// Command oci-validate checks an image against the OCI image specification: every document against the
// official JSON schema, every blob's digest and size, every layer's diff id against the config.
//
// It prints one line for each thing it looked at, and ends with exit code 1 when one of them is wrong, 2 when
// it was called wrongly.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

const usage = `usage: oci-validate LAYOUT-DIR
       oci-validate [--insecure] --registry HOST/REPOSITORY[:TAG|@DIGEST]
`

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(arguments []string, out, failures io.Writer) int {
	flags := flag.NewFlagSet("oci-validate", flag.ContinueOnError)
	flags.SetOutput(failures)
	flags.Usage = func() { fmt.Fprint(failures, usage) }
	image := flags.String("registry", "", "an image in a registry")
	insecure := flags.Bool("insecure", false, "talk plain HTTP to the registry")
	if err := flags.Parse(arguments); err != nil {
		return 2
	}
	if (*image == "") == (flags.NArg() == 0) || flags.NArg() > 1 {
		flags.Usage()
		return 2
	}
	report := &report{out: out, failures: failures}
	if *image != "" {
		checkRegistry(report, *image, *insecure)
	} else {
		checkLayout(report, flags.Arg(0))
	}
	if err := report.verdict(); err != nil {
		fmt.Fprintln(failures, err)
		return 1
	}
	return 0
}

// report writes a line per check and remembers how many failed.
type report struct {
	out, failures  io.Writer
	checked, wrong int
}

func (r *report) ok(place, facts string) {
	r.checked++
	fmt.Fprintf(r.out, "ok    %s: %s\n", place, facts)
}

func (r *report) fail(place string, err error) {
	r.checked++
	r.wrong++
	fmt.Fprintf(r.failures, "WRONG %s: %v\n", place, err)
}

func (r *report) verdict() error {
	switch {
	case r.checked == 0:
		return errors.New("nothing was there to check")
	case r.wrong > 0:
		return fmt.Errorf("%d of %d checks failed", r.wrong, r.checked)
	}
	return nil
}
