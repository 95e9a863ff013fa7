package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// library runs the benchmarks of what needs no network: opening a packet with very many clients in memory, and the
// kernel's gate, in builds that have one.
func (b *bench) library() error {
	for _, suite := range []struct{ pkg, pattern, what string }{
		{"./spa", "^BenchmarkOpen$/^clients=", "opening a packet"},
		{"./spa/capture/...", "Gate", "the gate in the kernel"},
	} {
		cmd := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", suite.pattern, "-benchtime", b.sizes.library,
			suite.pkg)
		cmd.Dir = b.repo
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
		for _, f := range figures(string(out)) {
			b.results.put(fmt.Sprintf("%s, %s, ns", suite.what, f.name), ours, fmt.Sprintf("%.4g", f.nanoseconds))
		}
	}
	return nil
}

// figure is the result of a benchmark.
type figure struct {
	name        string
	nanoseconds float64
}

var benchLine = regexp.MustCompile(`(?m)^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// figures parses what go test printed. Nanoseconds per packet, which a benchmark may report, come before those per
// operation.
func figures(out string) []figure {
	var all []figure
	for _, m := range benchLine.FindAllStringSubmatch(out, -1) {
		units := make(map[string]float64)
		words := strings.Fields(m[2])
		for i := 0; i+1 < len(words); i += 2 {
			if v, err := strconv.ParseFloat(words[i], 64); err == nil {
				units[words[i+1]] = v
			}
		}
		v, ok := units["ns/packet"]
		if !ok {
			v = units["ns/op"]
		}
		all = append(all, figure{strings.ReplaceAll(m[1], "_", " "), v})
	}
	slices.SortFunc(all, func(a, b figure) int { return cmp.Compare(a.name, b.name) }) // some run in any order
	return all
}
