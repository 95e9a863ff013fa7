package man

import "strings"

// Settings returns a text that defines each setting of a TOML file by the comment behind it, and by what more has for
// it, such as more["firewall.mode"]. A table in more is introduced by that text. A setting that is commented out in the
// file has an example in place of a default.
func Settings(file string, more map[string]string) string {
	s := settings{more: more}
	for line := range strings.Lines(file) {
		code, comment, _ := strings.Cut(strings.TrimSpace(line), "  # ")
		code, example := strings.CutPrefix(strings.TrimSpace(code), "# ")
		key, value, isSetting := strings.Cut(code, " = ")
		switch {
		case strings.HasPrefix(code, "["):
			s.begin(strings.TrimSpace(code), comment)
		case isSetting && strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789_") == "":
			s.add(key, value, comment, example)
		}
	}
	return s.text.String()
}

type settings struct {
	more  map[string]string
	text  strings.Builder
	table string
}

func (s *settings) begin(heading, comment string) {
	s.table = strings.Trim(heading, "[]")
	s.text.WriteString("# " + heading + "\n\n")
	if said := sentences(comment, s.more[s.table]); said != "" {
		s.text.WriteString(said + "\n\n")
	}
	s.table += "."
}

func (s *settings) add(key, value, comment string, example bool) {
	end := "Default: "
	if example {
		end = "For example: "
	}
	s.text.WriteString(key + "\n\t" + sentences(comment, s.more[s.table+key], end+value) + "\n\n")
}

// sentences joins texts, each of which becomes a sentence.
func sentences(texts ...string) string {
	var all []string
	for _, text := range texts {
		if text != "" {
			all = append(all, sentence(text))
		}
	}
	return strings.Join(all, " ")
}

// sentence leaves a first word alone that is a value with its explanation ("drop: ...").
func sentence(text string) string {
	first, _, _ := strings.Cut(text, " ")
	if !strings.HasSuffix(first, ":") && !strings.HasSuffix(first, ",") {
		text = upperFirst(text)
	}
	return strings.TrimSuffix(text, ".") + "."
}
