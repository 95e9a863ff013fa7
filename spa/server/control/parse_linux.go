package control

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Limits of the values in one reply: a value of two bytes, as in [0,0,0], can take a hundred times as many in memory.
const (
	fewValues  = 1 << 17 // a status names some thousand clients
	manyValues = 1 << 21 // a reload may name a million, and the grants that it ended
)

func mostValues(c Command) int {
	if c == CommandReload || c == CommandRevoke {
		return manyValues
	}
	return fewValues
}

// parse reads a reply that an attacker may have made.
func parse(line []byte, values int) (r Reply, err error) {
	if crowded(line, values) {
		return r, errEndless
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("the server's answer: %w", err)
	}
	r.clean()
	return r, nil
}

// crowded reports whether JSON has more than that many commas outside its texts.
func crowded(line []byte, most int) bool {
	if bytes.Count(line, []byte{','}) <= most {
		return false
	}
	found, text := 0, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			text = !text
		case c == '\\' && text:
			i++ // the next one ends no text
		case c == ',' && !text:
			found++
		}
	}
	return found > most
}
