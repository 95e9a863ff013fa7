// Bench measures Sallyport beside fwknop, knockd and no firewall at all, in one run on one machine: see README.md. Each
// program has a network of its own, made of network namespaces, and rounds alternate between the programs.
//
//	make bench-peers
//
// With -fleet it measures a fleet instead: many gateways, each with its agent, one office and etcd.
//
//	make bench-fleet
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sallyport/spa/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

// section is a part of the comparison.
type section struct {
	name string // for -only
	run  func(*bench) error
}

// sections are in the order in which they run.
var sections = []section{
	{"idle", (*bench).idle},
	{"open", (*bench).opens},
	{"connect", (*bench).connects},
	{"noise", (*bench).noise},
	{"cost", (*bench).costs},
	{"grants", (*bench).grants},
	{"library", (*bench).library},
}

// options is the command line.
type options struct {
	out   string
	repo  string
	sizes sizes
	peers bool
	only  []string
	fleet bool // instead of the comparison
	fleetSizes
}

func parse(args []string, stderr io.Writer) (options, error) {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("out", "results", "directory for results.md and the plots")
	short := flags.Bool("short", false, "small sizes: about two minutes, to see that it works")
	peers := flags.Bool("peers", true, "measure fwknop and knockd too")
	only := flags.String("only", "", "parts to run: "+strings.Join(names, ",")+" (default: all)")
	o := options{repo: "../..", sizes: full, only: names}
	flags.BoolVar(&o.fleet, "fleet", false, "measure a fleet instead: a quarter of an hour, as root, with etcd")
	flags.IntVar(&o.gateways, "gateways", 100, "of the fleet")
	flags.IntVar(&o.fleetSizes.clients, "clients", 10_000, "of the fleet")
	flags.IntVar(&o.rounds, "rounds", 3, "revocations of the fleet, for each way and number of gateways")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	o.out, o.peers = *out, *peers && !o.fleet
	if *short {
		o.sizes = small
	}
	if o.gateways < 1 || o.gateways > mostGateways {
		return options{}, fmt.Errorf("-gateways: 1 to %d", mostGateways)
	}
	if least := 4*o.rounds + 2; o.rounds < 1 || o.fleetSizes.clients < least {
		return options{}, errors.New("-rounds: at least 1, and 4 × rounds + 2 clients")
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	for _, name := range o.only {
		if !slices.Contains(names, name) {
			return options{}, fmt.Errorf("-only: no part %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	if flags.NArg() > 0 {
		return options{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return o, nil
}

func start(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.peers {
		if err := havePeers(); err != nil {
			return err
		}
	}
	if o.fleet {
		if err := needFleet(); err != nil {
			return err
		}
	}
	fmt.Fprintln(stderr, "building the programs")
	if err := build(ctx, o.repo, os.DevNull); err != nil { // now, because there may be no network in a namespace
		return err
	}
	if err := lab.Reexec(); err != nil {
		return err
	}
	if o.fleet {
		return runFleet(ctx, o, stderr)
	}
	return run(ctx, o, stderr)
}

// bench is one run.
type bench struct {
	sizes
	ctx     context.Context
	log     io.Writer // progress
	repo    string    // the main module
	dir     string    // temporary files
	bin     string    // Sallyport's programs
	peers   bool
	made    int // directories
	fields  []*field
	results results
}

// field is a program that is measured, in its own network.
type field struct {
	program
	net *network
}

func run(ctx context.Context, o options, log io.Writer) error {
	return inBench(ctx, o, log, func(b *bench) (err error) {
		defer func() { err = errors.Join(err, b.close()) }()
		if err := b.setUp(); err != nil {
			return err
		}
		failed := b.measure(o.only)
		if ctx.Err() != nil {
			return errors.New("interrupted: nothing was written")
		}
		return errors.Join(failed, b.results.write(o.out, "results.md", b.machine()))
	})
}

// inBench calls do with a directory and with Sallyport's programs in it.
func inBench(ctx context.Context, o options, log io.Writer, do func(*bench) error) error {
	dir, err := os.MkdirTemp("", "spa-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // the server may become another user
		return err
	}
	b := &bench{sizes: o.sizes, ctx: ctx, log: log, repo: o.repo, dir: dir, bin: filepath.Join(dir, "bin"), peers: o.peers}
	if err := build(ctx, b.repo, b.bin+"/"); err != nil {
		return err
	}
	return do(b)
}

// measure runs the parts. One that fails leaves its rows out, and the others run.
func (b *bench) measure(only []string) error {
	var errs []error
	for _, s := range sections {
		if b.ctx.Err() != nil || !slices.Contains(only, s.name) {
			continue
		}
		begun := time.Now()
		if err := s.run(b); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
		b.say("%s took %v", s.name, time.Since(begun).Round(time.Second))
	}
	return errors.Join(errs...)
}

// build builds Sallyport's programs as make does.
func build(ctx context.Context, repo, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s", "-o", to, "./cmd/...")
	cmd.Dir = repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return nil
}

// setUp starts every program in its own network, in the order of the table's columns.
func (b *bench) setUp() error {
	for _, p := range b.basics() {
		if err := b.enter(p); err != nil {
			return err
		}
	}
	for _, v := range variants {
		if !b.knows(v.setting) {
			continue
		}
		if err := b.enter(b.sallyport(v.name, b.devices, v.setting)); err != nil {
			b.say("left out: %v", err)
		}
	}
	return nil
}

// basics returns the programs that are compared, as most users run them.
func (b *bench) basics() []program {
	all := []program{&floor{}}
	if b.peers {
		all = append(all, &knockd{dir: b.fresh("knockd")}, &fwknop{dir: b.fresh("fwknop"), clients: 1})
	}
	return append(all, b.sallyport(ours, b.devices))
}

func (b *bench) enter(p program) error {
	f, _, err := b.begin(p, 0)
	if err != nil {
		return err
	}
	b.fields = append(b.fields, f)
	b.results.columns = append(b.results.columns, p.name())
	return nil
}

func (b *bench) close() error {
	var errs []error
	for _, f := range b.fields {
		errs = append(errs, f.stop(), f.net.close())
	}
	return errors.Join(errs...)
}

// among returns the running programs that have one of the names.
func (b *bench) among(names ...string) []*field {
	return slices.DeleteFunc(slices.Clone(b.fields), func(f *field) bool { return !slices.Contains(names, f.name()) })
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.log, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
}
