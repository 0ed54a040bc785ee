// Proxy and agent of the original implementation, as its library has them: logs only of errors, protobuf on the wire.
//
//	backstream-original proxy -listen HOST:PORT
//	backstream-original agent -proxy-url ws://HOST:PORT/ws -client-id ID [-upstream URL]
//
// The agent answers GET /small itself, or sends every request to an upstream.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime/debug"

	"github.com/grepplabs/backstream/handler"
	"github.com/grepplabs/backstream/ws"
)

var logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))

func main() {
	role := ""
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	var err error
	switch role {
	case "proxy":
		err = proxy(os.Args[2:])
	case "agent":
		err = agent(os.Args[2:])
	case "--version":
		version()
	default:
		err = fmt.Errorf("usage: %s proxy|agent|--version", os.Args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func proxy(arguments []string) error {
	flags := flag.NewFlagSet("proxy", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:8080", "where clients and agents connect")
	_ = flags.Parse(arguments)
	codec := handler.NewHttpProtoCodec()
	server := ws.NewServe(context.Background(), handler.NewProxyHandler(codec), codec.MessageCodec(), ws.WithServeLogger(logger))
	routes := http.NewServeMux()
	routes.HandleFunc("/ws", server.HandleWS)
	routes.HandleFunc("/", server.HandleProxy)
	return http.ListenAndServe(*listen, routes)
}

func agent(arguments []string) error {
	flags := flag.NewFlagSet("agent", flag.ExitOnError)
	proxyURL := flags.String("proxy-url", "ws://127.0.0.1:8080/ws", "where to dial")
	id := flags.String("client-id", "bench", "the agent's id")
	upstream := flags.String("upstream", "", "URL of the service; without it the agent answers itself")
	_ = flags.Parse(arguments)
	service, err := serviceOf(*upstream)
	if err != nil {
		return err
	}
	codec := handler.NewHttpProtoCodec()
	events := handler.NewRecoveryHandler(handler.NewHTTPHandler(service, codec), logger)
	client := ws.NewClient(context.Background(), *proxyURL, events, codec.MessageCodec(), ws.WithClientLogger(logger), ws.WithClientID(*id))
	client.Start()
	select {}
}

func serviceOf(upstream string) (http.HandlerFunc, error) {
	if upstream == "" {
		return small, nil
	}
	target, err := url.Parse(upstream)
	if err != nil {
		return nil, err
	}
	reverse := httputil.NewSingleHostReverseProxy(target)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, 256
	transport.DisableCompression = true
	reverse.Transport = transport
	return reverse.ServeHTTP, nil
}

func small(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/small" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write([]byte("Hello, world!\n"))
}

func version() {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/grepplabs/backstream" {
				fmt.Println(module.Version)
			}
		}
	}
}
