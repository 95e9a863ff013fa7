package member_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// A decision is what a packet led to that anyone can notice: an act, or an answer with the outcome of one. Packets that
// led to nothing are left out of the history.
type decision struct {
	nonce   [24]byte
	request [16]byte
}

// decided adds to the history.
func (s *site) decided(came time.Time, p packet, act bool) {
	s.history = append(s.history, porcupine.Operation{Input: decision{p.nonce, p.request}, Output: act,
		Call: came.UnixNano(), Return: time.Now().UnixNano()})
}

// command is the state of one command, as a single gateway would keep it.
type command struct {
	done bool
	used string // nonces that were answered
}

// single is one gateway without trouble: all members together must be indistinguishable from it.
var single = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byRequest := make(map[[16]byte][]porcupine.Operation)
		for _, op := range history {
			request := op.Input.(decision).request
			byRequest[request] = append(byRequest[request], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range byRequest {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return command{} },
	Step: func(state, input, output any) (bool, any) {
		c, nonce, act := state.(command), input.(decision).nonce, output.(bool)
		used := slices.Collect(slices.Chunk([]byte(c.used), len(nonce)))
		if slices.ContainsFunc(used, func(b []byte) bool { return string(b) == string(nonce[:]) }) || act == c.done {
			return false, nil
		}
		return true, command{true, c.used + string(nonce[:])}
	},
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%x acts: %t", input.(decision).nonce, output)
	},
}

// checkHistory: what all members did could have been done by one.
func (s *site) checkHistory(t *testing.T) {
	if !porcupine.CheckOperations(single, s.history) {
		t.Errorf("no single gateway could have decided so: %d decisions", len(s.history))
	}
}
