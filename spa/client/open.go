package client

import (
	"context"
	"fmt"

	"sallyport/keys"
	"sallyport/spa"
)

// RefusedError is returned if the gateway refused.
type RefusedError struct {
	Host   string // the profile's name
	Status spa.Status
}

// Error says which gateway refused and why.
func (e *RefusedError) Error() string { return fmt.Sprintf("%s refused: %s", e.Host, e.Status) }

// Open asks a gateway to open the command's services to this machine's address. It returns the answers of all address
// families once they are there, and no error if one of them is neither Silent, Refused nor Over. Otherwise the error is
// as for [Plan.Dial]. It ignores the command's Type.
func Open(ctx context.Context, p *keys.Profile, c Command) ([]Answer, error) {
	c.Type = spa.TypeOpen
	return do(ctx, p, c, system{})
}

// do prepares and runs a command.
func do(ctx context.Context, p *keys.Profile, c Command, n network) ([]Answer, error) {
	plan, err := prepare(ctx, p, c, n)
	if err != nil {
		return nil, err
	}
	var answers []Answer
	for answer := range plan.Knock(ctx) {
		answers = append(answers, answer)
	}
	if err := ctx.Err(); err != nil && len(answers) == 0 {
		return nil, err
	}
	return answers, plan.failure(answers)
}

// failure returns nil if one of the answers is a success, else the refusal, else why there was no answer.
func (p *Plan) failure(answers []Answer) error {
	var err error
	for _, a := range answers {
		switch a.Verdict {
		case Opened, Closed:
			return nil
		case Sent:
			if !p.keep {
				return nil
			}
			err = &PortError{Service: p.Command.Services[0]} // nothing to connect to
		case Refused:
			err = &RefusedError{Host: p.Profile.Name, Status: a.Receipt.Status}
		case Silent, Over:
			if err == nil {
				err = fmt.Errorf("knocking on %s (%v): %w", p.Profile.Name, a.Gateway, a.Err)
			}
		}
	}
	return err
}
