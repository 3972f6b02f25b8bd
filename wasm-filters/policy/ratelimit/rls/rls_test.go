package rls

import (
	"math"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	common "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	service "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// Envoy's own definitions are the oracle.

func TestRequest(t *testing.T) {
	asks := []Ask{
		{"shop/orders", 100, Second, 0},
		{"", 0, Day, 1},
		{string(make([]byte, 300)), math.MaxUint32, Minute, math.MaxUint32},
	}
	want := &service.RateLimitRequest{Domain: "isthmus"}
	for _, a := range asks {
		want.Descriptors = append(want.Descriptors, &common.RateLimitDescriptor{
			Entries:    []*common.RateLimitDescriptor_Entry{{Key: Key, Value: a.Rule}},
			Limit:      &common.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: a.Threshold, Unit: envoytype.RateLimitUnit(a.Unit)},
			HitsAddend: wrapperspb.UInt64(uint64(a.Hits)),
		})
	}
	got := new(service.RateLimitRequest)
	if err := proto.Unmarshal(AppendRequest(nil, "isthmus", asks), got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestGrpcService(t *testing.T) {
	for _, authority := range []string{"", "limits.example.org"} {
		want := &core.GrpcService{TargetSpecifier: &core.GrpcService_EnvoyGrpc_{EnvoyGrpc: &core.GrpcService_EnvoyGrpc{ClusterName: "outbound|8081||limits.example.org",
			Authority: authority}}}
		got := new(core.GrpcService)
		if err := proto.Unmarshal(AppendGrpcService(nil, "outbound|8081||limits.example.org", authority), got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// response is one that the real service has answered like.
func response() *service.RateLimitResponse {
	limit := &service.RateLimitResponse_RateLimit{RequestsPerUnit: 100, Unit: service.RateLimitResponse_RateLimit_SECOND}
	return &service.RateLimitResponse{OverallCode: service.RateLimitResponse_OVER_LIMIT, Statuses: []*service.RateLimitResponse_DescriptorStatus{
		{Code: service.RateLimitResponse_OK, CurrentLimit: limit, LimitRemaining: 42, DurationUntilReset: durationpb.New(700 * time.Millisecond)},
		{Code: service.RateLimitResponse_OVER_LIMIT, CurrentLimit: limit, DurationUntilReset: durationpb.New(24 * time.Hour)},
		{Code: service.RateLimitResponse_OK},
	}}
}

func marshal(t testing.TB, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRead(t *testing.T) {
	b := marshal(t, response())
	answers := make([]Answer, 3)
	if !Read(b, answers) {
		t.Fatal("not read")
	}
	want := []Answer{{true, false, 42, policy.Nanos(700 * time.Millisecond)}, {true, true, 0, policy.Nanos(24 * time.Hour)}, {}}
	for i := range want {
		if answers[i] != want[i] {
			t.Errorf("answer %d: got %+v, want %+v", i, answers[i], want[i])
		}
	}
	if Read(b, answers[:2]) {
		t.Error("three answers were taken for two")
	}
	if Read(b, make([]Answer, 4)) {
		t.Error("three answers were taken for four")
	}
	for n := range b {
		Read(b[:n], answers) // whatever it says, it does not panic
	}
	for name, bad := range map[string]*service.RateLimitResponse_DescriptorStatus{
		"no code":             {},
		"a negative duration": {Code: service.RateLimitResponse_OK, DurationUntilReset: &durationpb.Duration{Seconds: -1}},
		"negative nanos":      {Code: service.RateLimitResponse_OK, DurationUntilReset: &durationpb.Duration{Nanos: -1}},
		"more than a day":     {Code: service.RateLimitResponse_OK, DurationUntilReset: &durationpb.Duration{Seconds: 86_401}},
	} {
		if Read(marshal(t, &service.RateLimitResponse{Statuses: []*service.RateLimitResponse_DescriptorStatus{bad}}), answers[:1]) {
			t.Errorf("%s was taken for an answer", name)
		}
	}
}

// FuzzRead: what Read takes, Envoy's definition reads too, and the same.
func FuzzRead(f *testing.F) {
	f.Add(marshal(f, response()), 3)
	f.Add([]byte{0x12, 0x02, 0x08, 0x01}, 1)
	f.Add([]byte{0x12, 0x0a, 0x08, 0x02, 0x22, 0x06, 0x08, 0x01, 0x10, 0x80, 0x80, 0x04, 0x19}, 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 0 || n > 16 {
			return
		}
		answers := make([]Answer, n)
		if !Read(b, answers) {
			return
		}
		m := new(service.RateLimitResponse)
		if proto.Unmarshal(b, m) != nil {
			return // strict where Read only skips: in fields that it does not look into, and in UTF-8
		}
		if len(m.Statuses) != n {
			t.Fatalf("%d answers of %d", n, len(m.Statuses))
		}
		for i, s := range m.Statuses {
			a := answers[i]
			if a.Over != (s.Code == service.RateLimitResponse_OVER_LIMIT) || a.Known != (a.Over || s.CurrentLimit != nil) {
				t.Errorf("answer %d is %+v of %v", i, a, s)
			}
		}
	})
}

func TestAllocations(t *testing.T) {
	b := marshal(t, response())
	answers, asks, dst := make([]Answer, 3), []Ask{{"a", 1, Second, 1}}, make([]byte, 0, 256)
	if n := testing.AllocsPerRun(100, func() {
		Read(b, answers)
		dst = AppendRequest(dst[:0], "isthmus", asks)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
