package iptables

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// saved is the part of iptables-save's output for a table that concerns us.
type saved struct {
	Chains map[string][]string // our chains that exist, with their rules
	Others []string            // rules of other chains that lead to ours
	first  map[string]string   // the first rule of each other chain
}

// ParseSaved reads the output of iptables-save for a table.
func ParseSaved(t table, text string) *saved {
	s := &saved{Chains: make(map[string][]string), first: make(map[string]string)}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		switch {
		case len(words) > 0 && strings.HasPrefix(words[0], ":"):
			if name := words[0][1:]; slices.Contains(t.chains, name) {
				s.Chains[name] = nil
			}
		case len(words) > 1 && words[0] == "-A":
			s.rule(t, words[1], line, words)
		}
	}
	return s
}

func (s *saved) rule(t table, chain, line string, words []string) {
	if slices.Contains(t.chains, chain) {
		s.Chains[chain] = append(s.Chains[chain], line)
		return
	}
	if s.first[chain] == "" {
		s.first[chain] = line
	}
	// A jump is the last thing in a rule: the same words earlier on are in a comment.
	last := words[len(words)-2:]
	if (last[0] == "-j" || last[0] == "-g") && slices.Contains(t.chains, last[1]) {
		s.Others = append(s.Others, line)
	}
}

// present reports whether anything of ours is there.
func (s *saved) present() bool { return len(s.Chains)+len(s.Others) > 0 }

// foreign reports whether chains with our names are not ours: they have rules, and none has our signature.
func (s *saved) foreign() bool {
	rules := 0
	for _, lines := range s.Chains {
		rules += len(lines)
		for _, line := range lines {
			if strings.Contains(line, "--comment "+signature) {
				return false
			}
		}
	}
	return rules > 0
}

// jumpsFirst reports whether packets reach our chains before any other rule of the table.
func (s *saved) jumpsFirst(t table) bool {
	for _, jump := range t.jumps {
		want := fmt.Sprintf("-A %s -m comment --comment %s -j %s", jump[0], signature, jump[1])
		if s.first[jump[0]] != want {
			return false
		}
	}
	return len(s.Others) == len(t.jumps)
}

// holds reports whether each chain has as many rules as in the script. Right after a load that is good evidence that
// they are the same.
func (s *saved) holds(t table, want *script) bool {
	for _, chain := range t.chains {
		lines, there := s.Chains[chain]
		if !there || len(lines) != len(want.lines[chain]) {
			return false
		}
	}
	return s.jumpsFirst(t)
}

// digest returns a hash of the guard's rules in a table.
func (s *saved) digest(t table) string {
	h := sha256.New()
	fmt.Fprintln(h, s.jumpsFirst(t))
	for _, chain := range t.chains {
		lines, there := s.Chains[chain]
		fmt.Fprintln(h, chain, there)
		for _, line := range lines {
			fmt.Fprintln(h, line)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
