package filtertest

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimit "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// describeQuestion writes a question to a rate limit service as text: its token, who is asked, and a line for each rule.
func describeQuestion(out *strings.Builder, q Question) error {
	service, request := new(core.GrpcService), new(ratelimit.RateLimitRequest)
	if err := proto.Unmarshal(q.Service, service); err != nil {
		return err
	}
	if err := proto.Unmarshal(q.Message, request); err != nil {
		return err
	}
	if q.Method != "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit" {
		return fmt.Errorf("asked %s", q.Method)
	}
	e := service.GetEnvoyGrpc()
	fmt.Fprintf(out, "%d: %s as %s, domain %s\n", q.Token, e.GetClusterName(), e.GetAuthority(), request.Domain)
	for _, d := range request.Descriptors {
		fmt.Fprintf(out, "  %s=%s: %d calls, limit %d each %s\n", d.Entries[0].Key, d.Entries[0].Value, d.HitsAddend.GetValue(), d.Limit.GetRequestsPerUnit(), d.Limit.GetUnit())
	}
	return nil
}

// limitAnswer makes the answer of a rate limit service, about one rule for each group of args: "left N TIME", "over TIME" or "unlimited". "none" is no
// answer, "bad" one that nobody can read.
func limitAnswer(args []string) ([]byte, error) {
	m := new(ratelimit.RateLimitResponse)
	limit := &ratelimit.RateLimitResponse_RateLimit{RequestsPerUnit: 1, Unit: ratelimit.RateLimitResponse_RateLimit_SECOND}
	take := func() string {
		if len(args) == 0 {
			return ""
		}
		s := args[0]
		args = args[1:]
		return s
	}
	for len(args) > 0 {
		s := &ratelimit.RateLimitResponse_DescriptorStatus{Code: ratelimit.RateLimitResponse_OK}
		switch word := take(); word {
		case "none":
			return nil, nil
		case "bad":
			return []byte{0x12, 0x7f}, nil
		case "unlimited":
			m.Statuses = append(m.Statuses, s)
			continue
		case "left":
			n, err := strconv.ParseUint(take(), 10, 32)
			if err != nil {
				return nil, err
			}
			s.LimitRemaining = uint32(n)
		case "over":
			s.Code = ratelimit.RateLimitResponse_OVER_LIMIT
		default:
			return nil, fmt.Errorf("no answer %q", word)
		}
		reset, err := time.ParseDuration(take())
		if err != nil {
			return nil, err
		}
		s.CurrentLimit, s.DurationUntilReset = limit, durationpb.New(reset)
		m.Statuses = append(m.Statuses, s)
	}
	return proto.Marshal(m)
}
