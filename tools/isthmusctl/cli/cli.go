// Package cli is the commands of isthmusctl, on a live mcp-server through its API and offline on configuration files,
// service files and captured frames. They call the functions that production calls.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// The exit codes. They are part of the command's interface: scripts rely on them.
const (
	ExitOK          = 0 // done
	ExitBad         = 1 // done, and what was looked at is bad: a malformed frame, an invalid file, no such service
	ExitUsage       = 2 // the command line or an input file is wrong
	ExitUnreachable = 3 // a server or registry could not be reached, or failed
)

// codeError is an error that knows its exit code. A nil err means that all has been said already.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

// badf is an error about what was looked at.
func badf(format string, args ...any) error {
	return &codeError{ExitBad, fmt.Errorf(format, args...)}
}

// usagef is an error about the command line or an input file that cannot be read.
func usagef(format string, args ...any) error {
	return &codeError{ExitUsage, fmt.Errorf(format, args...)}
}

// unreachablef is an error about a peer that cannot be reached or fails.
func unreachablef(format string, args ...any) error {
	return &codeError{ExitUnreachable, fmt.Errorf(format, args...)}
}

// errQuiet ends with exit code 1 where the output says already what is wrong.
var errQuiet = &codeError{ExitBad, nil}

// Streams are a command's input and output.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	Colour   bool // Out is a terminal that shows colours
	Progress bool // Err is a terminal: progress may be shown there
	// Size returns the columns and lines of the terminal that Out is, at this moment; nil where Out is none.
	Size func() (columns, lines int)
}

// width returns the columns of the terminal, 0 where Out is none.
func (s *Streams) width() int {
	if s.Size == nil {
		return 0
	}
	columns, _ := s.Size()
	return columns
}

// Main runs one command line with the process's own streams, environment and signals, and returns the exit code.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := &Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Progress: term.IsTerminal(int(os.Stderr.Fd()))}
	if term.IsTerminal(int(os.Stdout.Fd())) {
		s.Colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		s.Size = func() (columns, lines int) {
			columns, lines, err := term.GetSize(int(os.Stdout.Fd()))
			if err != nil {
				return 80, 24
			}
			return columns, lines
		}
	}
	return Run(ctx, s, args)
}

// Run executes one command line and returns its exit code.
func Run(ctx context.Context, s *Streams, args []string) int {
	root := New(s)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	code := ExitUsage // cobra's own errors are about the command line
	if e, ok := errors.AsType[*codeError](err); ok {
		code = e.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(s.Err, "isthmusctl: %s\n", text)
	}
	return code
}

// New returns the tree of commands.
func New(s *Streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "isthmusctl",
		Short: "Show and work on the services that Isthmus brings into the mesh",
		Long: `isthmusctl shows what Isthmus knows of the mesh's services and works on its configuration.

services, service, problems, sources, rules, rule, rollout, istiods and top ask a running mcp-server (--server, or $ISTHMUS_SERVER);
registry, translate, config and decode work on files.

Exit codes: 0 done; 1 done, and what was looked at is bad (a malformed frame, an invalid file, no such service);
2 the command line or an input file is wrong; 3 a server or registry could not be reached, or failed.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.CompletionOptions.HiddenDefaultCmd = true
	server := addServerFlags(root)
	root.AddCommand(
		newServices(s, server),
		newService(s, server),
		newProblems(s, server),
		newSources(s, server),
		newRules(s, server),
		newRule(s, server),
		newRollout(s, server),
		newIstiods(s, server),
		newTop(s, server),
		newRegistry(s),
		newTranslate(s),
		newConfig(s),
		newDecode(s),
	)
	return root
}
