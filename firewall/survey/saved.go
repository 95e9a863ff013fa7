package survey

import (
	"strings"
)

// savedBases are the base chains of iptables, with their hooks and priorities (linux/netfilter_ipv4.h).
var savedBases = map[string]map[string]struct {
	hook     hook
	priority int32
}{
	"raw":      {"PREROUTING": {prerouting, -300}},
	"mangle":   {"PREROUTING": {prerouting, -150}, "INPUT": {input, -150}, "FORWARD": {forward, -150}},
	"nat":      {"PREROUTING": {prerouting, -100}, "INPUT": {input, 100}},
	"filter":   {"INPUT": {input, 0}, "FORWARD": {forward, 0}},
	"security": {"INPUT": {input, 50}, "FORWARD": {forward, 50}},
}

// addText adds the tables that an iptables-save program printed, and returns their names.
func (r *Ruleset) addText(how kind, family, program, text string) []string {
	var names []string
	var t *table
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "*"):
			t = &table{tableKey: tableKey{how, family, line[1:]}, program: program, chains: make(map[string]*chain)}
			r.tables[t.tableKey] = t
			names = append(names, t.name)
		case t == nil:
		case strings.HasPrefix(line, ":"):
			t.addSavedChain(line[1:])
		case strings.HasPrefix(line, "-A "):
			t.addSavedRule(line)
		}
	}
	return names
}

// addSavedChain reads "INPUT DROP [0:0]".
func (t *table) addSavedChain(line string) {
	words := strings.Fields(line)
	if len(words) < 2 {
		return
	}
	c := &chain{table: t, name: words[0], drop: words[1] == "DROP"}
	if words[1] != "-" { // a user-defined chain has no policy
		base, ok := savedBases[t.name][c.name]
		c.hook, c.priority = base.hook, base.priority
		if !ok {
			c.hook = elsewhere
		}
	}
	t.chains[c.name] = c
}

func (t *table) addSavedRule(line string) {
	words := splitWords(line)
	if len(words) < 2 {
		return
	}
	c := t.chains[words[1].text]
	if c == nil {
		return
	}
	if r := parseSaved(line, words[2:]); !strings.HasPrefix(r.target, ours+"-") {
		c.rules = append(c.rules, r)
	}
}

// word is an argument; a quoted one is never an option.
type word struct {
	text   string
	quoted bool
}

func (w word) option() bool {
	return !w.quoted && (w.text == "!" || strings.HasPrefix(w.text, "-") && len(w.text) > 1)
}

// splitWords splits a line like iptables-restore: at spaces, with double quotes and backslashes.
func splitWords(line string) []word {
	var words []word
	var current strings.Builder
	inWord, quoted, inQuotes, escaped := false, false, false, false
	end := func() {
		if inWord {
			words = append(words, word{current.String(), quoted})
		}
		current.Reset()
		inWord, quoted = false, false
	}
	for _, c := range line {
		switch {
		case escaped:
			current.WriteRune(c)
			escaped = false
		case c == '\\' && inQuotes:
			escaped = true
		case c == '"':
			inQuotes, inWord, quoted = !inQuotes, true, true
		case c == ' ' && !inQuotes:
			end()
		default:
			inWord = true
			current.WriteRune(c)
		}
	}
	end()
	return words
}

// savedRule is a line of iptables-save.
type savedRule struct {
	line       string
	conditions []condition
	target     string
	comesBack  bool                // -j; -g otherwise
	options    map[string][]string // of the target
}

// condition is an option with its arguments.
type condition struct {
	module  string // the last -m before it
	name    string
	args    []string
	negated bool
	test    test // nil: not understood
}

func (r *savedRule) String() string { return r.line }

// oneArgument are options whose argument is free text, which may look like an option.
var oneArgument = map[string]bool{"--comment": true, "--name": true, "--log-prefix": true, "--nflog-prefix": true,
	"--string": true, "--hex-string": true, "--hashlimit-name": true}

func parseSaved(line string, words []word) *savedRule {
	r := &savedRule{line: line, options: make(map[string][]string), comesBack: true}
	module, negated, ofTarget := "", false, false
	for i := 0; i < len(words); {
		name := words[i].text
		i++
		if name == "!" {
			negated = true
			continue
		}
		args := arguments(name, words[i:])
		i += len(args)
		switch {
		case ofTarget:
			r.options[name] = args
		case name == "-j" || name == "-g":
			r.target, r.comesBack, ofTarget = strings.Join(args, " "), name == "-j", true
		default:
			if name == "-m" {
				module = strings.Join(args, " ")
			}
			r.conditions = append(r.conditions, condition{module, name, args, negated, conditions[name]})
		}
		negated = false
	}
	return r
}

// arguments returns an option's arguments: everything up to the next option.
func arguments(name string, words []word) []string {
	var args []string
	for i, w := range words {
		if i == 0 && oneArgument[name] {
			return []string{w.text}
		}
		if w.option() {
			break
		}
		args = append(args, w.text)
	}
	return args
}

func (r *savedRule) weigh(p *passage) ruling {
	match, bySource, otherSource := yes, false, false
	for i := range r.conditions {
		t, source := r.conditions[i].holds(p)
		bySource = bySource || source
		if source && p.anybody {
			t = maybe
		}
		if source && t == no {
			otherSource = true // to find out whether the sender alone keeps it from matching
			continue
		}
		if match = match.and(t); match == no {
			return ruling{}
		}
	}
	if otherSource {
		p.sources = p.sources || !r.onlyDrops()
		return ruling{}
	}
	verdicts := r.act(p, match)
	p.sources = p.sources || bySource && len(verdicts) > 0
	return ruling{sure: match == yes, verdicts: verdicts}
}

// onlyDrops reports whether the rule can do nothing with a packet but drop it.
func (r *savedRule) onlyDrops() bool {
	return r.target == "DROP" || r.target == "REJECT" || r.target == ""
}

func (c *condition) holds(p *passage) (t truth, bySource bool) {
	if c.test == nil {
		return maybe, false
	}
	t, bySource = c.test(p, *c)
	if c.negated {
		t = t.not()
	}
	return t, bySource
}
