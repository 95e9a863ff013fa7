package standin

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// A History is what packets led to that anyone can notice: acts, and answers with the outcome of one. Packets that led
// to nothing are left out.
type History struct {
	mu   sync.Mutex
	list []porcupine.Operation
}

type decision struct {
	nonce   [24]byte
	request [16]byte
}

// Add adds that a packet which came at a time has led to an act, or to the answer that there was one.
func (h *History) Add(nonce [24]byte, request [16]byte, came time.Time, act bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, porcupine.Operation{Input: decision{nonce, request}, Output: act, Call: came.UnixNano(),
		Return: time.Now().UnixNano()})
}

// Acts returns how many packets have led to an act.
func (h *History) Acts() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	acts := 0
	for _, op := range h.list {
		if op.Output.(bool) {
			acts++
		}
	}
	return acts
}

// Check reports an error unless one gateway without trouble could have done all that its members did.
func (h *History) Check(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !porcupine.CheckOperations(single, h.list) {
		t.Errorf("no single gateway could have decided so: %d decisions", len(h.list))
	}
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
