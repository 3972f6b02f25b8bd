// Command mcp-server joins the services of legacy registries to an Istio mesh: it reads the registries, serves what it makes
// of them to istiod, and shows everything over an API.
//
// Usage: mcp-server --config FILE [--log-level debug|info|warn|error] [--log-format text|json] [--check] [--version]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/isthmus-mesh/isthmus/mcp-server/app"
)

// version is set when a release is built: -ldflags "-X main.version=v1.2.3".
var version = "dev"

// The exit codes.
const (
	exitFailed = 1 // it could not go on, or the configuration is wrong
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("mcp-server", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "", "the configuration file (see mcp-server/README.md)")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	format := flags.String("log-format", "text", "text or json")
	check := flags.Bool("check", false, "read the configuration, say all that is wrong with it, and exit")
	show := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return exitUsage
	}
	if *show {
		fmt.Fprintln(stdout, version)
		return 0
	}
	var severity slog.Level
	if err := severity.UnmarshalText([]byte(*level)); err != nil {
		fmt.Fprintf(stderr, "mcp-server: --log-level: %q is none of debug, info, warn, error\n", *level)
		return exitUsage
	}
	var handler slog.Handler
	switch *format {
	case "text":
		handler = slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: severity})
	case "json":
		handler = slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: severity})
	default:
		fmt.Fprintf(stderr, "mcp-server: --log-format: %q is neither text nor json\n", *format)
		return exitUsage
	}
	if *path == "" || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "mcp-server: --config FILE is needed, and no argument besides")
		return exitUsage
	}
	if *check {
		if err := app.Check(*path); err != nil {
			fmt.Fprintln(stderr, err)
			return exitFailed
		}
		return 0
	}
	if err := app.Run(ctx, app.Options{ConfigPath: *path, Version: version, Log: slog.New(handler)}); err != nil {
		fmt.Fprintln(stderr, err)
		return exitFailed
	}
	return 0
}
