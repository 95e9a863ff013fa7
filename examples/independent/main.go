// Independent is a client for the Sallyport protocol that was written from its
// specification, PROTOCOL.md, alone. Sections named in comments are that
// document's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// Exit statuses.
const (
	exitDone     = 0
	exitFailed   = 1
	exitMisuse   = 2
	exitRefused  = 3
	exitNoAnswer = 4
)

// maxToken is more than the longest token has.
const maxToken = 4 << 20

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// options is what the command line says.
type options struct {
	token   string
	command command
	source  *sourceRule // nil: the token decides
	timeout time.Duration
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitDone
	case err != nil:
		fmt.Fprintln(stderr, "independent:", err)
		return exitMisuse
	}
	status, err := o.do(stdin, stdout)
	if err != nil {
		fmt.Fprintln(stderr, "independent:", err)
	}
	return status
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("independent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.token, "token", "", "`file` with the enrolment token, - for standard input")
	list := flags.String("service", "", "`services` to ask for, as ssh or tcp/22, with commas")
	closing := flags.Bool("close", false, "close instead of open")
	length := flags.Duration("for", 0, "how long; 0 leaves it to the server")
	source := flags.String("source", "", "`address` to state, observed or auto; without it the token decides")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long to wait for an answer")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || o.token == "" || *list == "" || o.timeout <= 0 {
		return o, errors.New("needs -token, -service, a timeout over 0 and nothing else")
	}
	var err error
	if o.command, err = newCommand(*list, *closing, *length); err != nil {
		return o, err
	}
	o.source, err = sourceOption(*source)
	return o, err
}

func newCommand(list string, closing bool, length time.Duration) (command, error) {
	services, err := parseServices(list)
	if err != nil {
		return command{}, err
	}
	millis := length.Milliseconds()
	if length < 0 || millis > math.MaxUint32 || length%time.Millisecond != 0 {
		return command{}, fmt.Errorf("cannot ask for %s: whole milliseconds, at most %d", length, uint32(math.MaxUint32))
	}
	if !closing {
		return command{kind: typeOpen, millis: uint32(millis), services: services}, nil
	}
	if length != 0 {
		return command{}, errors.New("-for means nothing with -close")
	}
	return command{kind: typeClose, services: services}, nil
}

func sourceOption(text string) (*sourceRule, error) {
	switch text {
	case "":
		return nil, nil
	case "auto":
		return &sourceRule{}, nil
	}
	rule, err := parseSource(text)
	return &rule, err
}

// do reads the token, knocks and reports.
func (o options) do(stdin io.Reader, stdout io.Writer) (int, error) {
	p, err := readToken(o.token, stdin)
	if err != nil {
		return exitFailed, err
	}
	s, err := newSession(p)
	if err != nil {
		return exitFailed, err
	}
	families, err := o.families(p)
	if err != nil {
		return exitFailed, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	results := knockAll(ctx, families, s, o.command, o.timeout)
	return o.report(results, cancel, stdout)
}

func readToken(name string, stdin io.Reader) (profile, error) {
	in := stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return profile{}, fmt.Errorf("token: %w", err)
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, maxToken))
	if err != nil {
		return profile{}, fmt.Errorf("token: %w", err)
	}
	return parseToken(string(text))
}

// families resolves the server, which has as much time as the knock. Where it
// sends no receipts, they get the TCP ports to try instead.
func (o options) families(p profile) ([]family, error) {
	rule, err := o.rule(p)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.timeout)
	defer cancel()
	families, err := resolve(ctx, p, rule)
	if p.receipts || err != nil {
		return families, err
	}
	ports, ok := p.tcpPorts(o.command)
	for i := range families {
		families[i].blind = !ok
		for _, port := range ports {
			families[i].probes = append(families[i].probes, pairs(families[i].addresses(), []uint16{port}))
		}
	}
	return families, nil
}

func (o options) rule(p profile) (sourceRule, error) {
	if o.source != nil {
		return *o.source, nil
	}
	return parseSource(p.source)
}

// tcpPorts returns the first TCP port of each service. It reports false where
// these cannot tell that the command was done: for a close, or where a service
// has none that is known.
func (p profile) tcpPorts(c command) ([]uint16, bool) {
	var ports []uint16
	for _, s := range c.services {
		ranges := p.rangesOf(s.name)
		if s.name == "" {
			ranges = []portRange{{s.protocol, s.port, s.port}}
		}
		i := slices.IndexFunc(ranges, func(r portRange) bool { return r.protocol == tcp })
		if i < 0 || c.kind != typeOpen {
			return nil, false
		}
		ports = append(ports, ranges[i].low)
	}
	return ports, true
}

func (p profile) rangesOf(name string) []portRange {
	for _, s := range p.services {
		if s.name == name {
			return s.ports
		}
	}
	return nil
}

// addresses returns those of the destinations, each once.
func (f family) addresses() []netip.Addr {
	var list []netip.Addr
	for _, d := range f.destinations {
		if !slices.Contains(list, d.Addr()) {
			list = append(list, d.Addr())
		}
	}
	return list
}

// result is how a family ended.
type result struct {
	family family
	answer answer
	err    error
}

// knockAll knocks on all families at the same time. The channel brings one
// result for each and is closed.
func knockAll(ctx context.Context, families []family, s *session, cmd command, within time.Duration) <-chan result {
	results, one := make(chan result), make(chan result)
	for _, f := range families {
		go func() {
			a, err := f.knock(ctx, s, cmd, within)
			one <- result{f, a, err}
		}()
	}
	go func() {
		defer close(results)
		for range families {
			results <- <-one
		}
	}()
	return results
}

// report prints each answer. After the first the other family has a second
// left (section 7).
func (o options) report(results <-chan result, cancel func(), stdout io.Writer) (int, error) {
	status := exitNoAnswer
	var failed error
	for r := range results {
		switch {
		case errors.Is(r.err, errNoAnswer):
		case r.err != nil:
			failed = r.err
		case !o.command.fits(r.answer):
			time.AfterFunc(time.Second, cancel)
			failed = errors.New("the server's receipt does not fit the request")
		default:
			time.AfterFunc(time.Second, cancel)
			o.print(stdout, r)
			status = better(status, r.answer)
		}
	}
	switch {
	case status != exitNoAnswer:
		return status, nil
	case failed != nil:
		return exitFailed, failed
	}
	return status, fmt.Errorf("%w: packets were lost, the token or the stated source is wrong, "+
		"this clock (%s) is wrong, or the server is not there", errNoAnswer, time.Now().Format(time.RFC3339))
}

// fits tells whether an answer is one to this command. What does not fit ends
// the waiting all the same (section 6).
func (c command) fits(a answer) bool {
	switch a.receipt.status {
	case statusGranted:
		return c.kind == typeOpen && len(a.receipt.services) == len(c.services)
	case statusClosed:
		n := len(a.receipt.services)
		return c.kind == typeClose && (n == 0 || n == len(c.services))
	}
	return true
}

// better returns the status that counts: what one family got is not undone by
// a refusal in the other.
func better(status int, a answer) int {
	if !a.receipt.refused() {
		return exitDone
	}
	if status == exitDone {
		return status
	}
	return exitRefused
}

func (o options) print(w io.Writer, r result) {
	got := r.answer.receipt
	switch {
	case r.answer.unknown:
		fmt.Fprintf(w, "asked for %s: the server sends no receipts, and nothing else confirms it\n", names(o.command.services))
	case r.answer.accepted.IsValid():
		fmt.Fprintf(w, "granted %s: %s accepts connections\n", names(o.command.services), r.answer.accepted)
	case got.status == statusTooEarly:
		fmt.Fprintf(w, "refused: %d %s: again after %s\n", got.status, reason(got.status), time.Unix(0, got.again).Format(time.RFC3339))
	case got.refused():
		fmt.Fprintf(w, "refused: %d %s\n", got.status, reason(got.status))
	case got.status == statusClosed:
		fmt.Fprintf(w, "closed %s for %s\n", names(o.command.services), r.address())
	default:
		for i, g := range got.services {
			fmt.Fprintf(w, "granted %s %s for %s until %s\n", o.command.services[i], g, r.address(),
				r.answer.end(g).Format(time.RFC3339))
		}
	}
}

func names(services []service) string {
	texts := make([]string, len(services))
	for i, s := range services {
		texts[i] = s.String()
	}
	return strings.Join(texts, ",")
}

func reason(status byte) string {
	if text, ok := refusals[status]; ok {
		return text
	}
	return "for a reason that this client does not know"
}

// address is the one that the server saw or, where it does not tell, the one
// that was stated.
func (r result) address() string {
	switch {
	case r.answer.receipt.source.IsValid():
		return r.answer.receipt.source.String()
	case r.family.stated.IsValid():
		return r.family.stated.String()
	}
	return "this address"
}

func (g grant) String() string {
	texts := make([]string, 0, len(g.ranges)+1)
	for _, r := range g.ranges {
		texts = append(texts, r.String())
	}
	if g.more {
		texts = append(texts, "more")
	}
	return strings.Join(texts, ",")
}
