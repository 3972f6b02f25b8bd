package translate

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"testing/quick"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

var dns1123 = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

func checkHost(t *testing.T, host string) {
	t.Helper()
	if len(host) > maxHost {
		t.Errorf("%s is %d bytes long", host, len(host))
	}
	for label := range strings.SplitSeq(host, ".") {
		if len(label) > maxLabel || !dns1123.MatchString(label) {
			t.Errorf("label %q of %s is not one of DNS", label, host)
		}
	}
}

func TestHost(t *testing.T) {
	long := strings.Repeat("Abcdefghi", 9)
	for name, c := range map[string]struct {
		key  model.Key
		p    model.Protocol
		want string
	}{
		"plain":                      {model.Key{Framework: "dubbo", Interface: "demo.GreetService"}, "", "demo.greet-service.dubbo.isthmus"},
		"version and group":          {model.Key{Framework: "dubbo", Interface: "demo.GreetService", Version: "1.0.0", Group: "g1"}, "", "demo.greet-service.v1-0-0.g-g1.dubbo.isthmus"},
		"group only":                 {model.Key{Framework: "dubbo", Interface: "org.apache.dubbo.samples.UserService", Group: "prod"}, "", "org.apache.dubbo.samples.user-service.g-prod.dubbo.isthmus"},
		"SOFA":                       {model.Key{Framework: "sofa", Interface: "com.alipay.PayFacade", Version: "1.0", Group: "blue"}, "", "com.alipay.pay-facade.v1-0.g-blue.sofa.isthmus"},
		"Spring":                     {model.Key{Framework: "spring", Interface: "order-service"}, "", "order-service.spring.isthmus"},
		"Spring in capitals":         {model.Key{Framework: "spring", Interface: "ORDER-SERVICE"}, "", "0-----9order--3--9service.spring.isthmus"},
		"Spring like a group":        {model.Key{Framework: "spring", Interface: "g-one"}, "", "0---g-one.spring.isthmus"},
		"Spring with a dot":          {model.Key{Framework: "spring", Interface: "a.b"}, "", "a--0b.spring.isthmus"},
		"other protocol":             {model.Key{Framework: "dubbo", Interface: "demo.A", Version: "2"}, "tri", "demo.a.v2.p-tri.dubbo.isthmus"},
		"a run of capitals":          {model.Key{Framework: "dubbo", Interface: "demo.HTTPClient"}, "", "demo.h-t-t-p-client.dubbo.isthmus"},
		"a digit":                    {model.Key{Framework: "dubbo", Interface: "demo.Md5"}, "", "demo.md5.dubbo.isthmus"},
		"inner class":                {model.Key{Framework: "dubbo", Interface: "demo.Outer$Inner"}, "", "demo.outer--2-inner.dubbo.isthmus"},
		"underscore":                 {model.Key{Framework: "dubbo", Interface: "demo.user_api"}, "", "demo.0---user--1api.dubbo.isthmus"},
		"capital package":            {model.Key{Framework: "dubbo", Interface: "Demo.A"}, "", "0----demo.a.dubbo.isthmus"},
		"version package":            {model.Key{Framework: "dubbo", Interface: "demo.v1.Greeter"}, "", "demo.v1.greeter.dubbo.isthmus"},
		"class like a version":       {model.Key{Framework: "dubbo", Interface: "demo.V1Api"}, "", "demo.0----v1-api.dubbo.isthmus"},
		"class like a group":         {model.Key{Framework: "dubbo", Interface: "demo.GPay"}, "", "demo.0----g-pay.dubbo.isthmus"},
		"class like a protocol":      {model.Key{Framework: "dubbo", Interface: "demo.PTri"}, "", "demo.0----p-tri.dubbo.isthmus"},
		"version with a name":        {model.Key{Framework: "dubbo", Interface: "demo.A", Version: "beta"}, "", "demo.a.v-beta.dubbo.isthmus"},
		"version with an underscore": {model.Key{Framework: "dubbo", Interface: "demo.A", Version: "1.0.0_beta"}, "", "demo.a.v1-0-0--1beta.dubbo.isthmus"},
		"snapshot":                   {model.Key{Framework: "dubbo", Interface: "demo.A", Version: "1.0.0-SNAPSHOT"}, "", "demo.a.v1-0-0--3--9snapshot.dubbo.isthmus"},
		"star":                       {model.Key{Framework: "dubbo", Interface: "demo.A", Version: "*", Group: "*"}, "", "demo.a.v---4.g---4.dubbo.isthmus"},
		"ends in a dot":              {model.Key{Framework: "dubbo", Interface: "demo.A", Version: "1."}, "", "demo.a.v1--0.dubbo.isthmus"},
		"group in capitals":          {model.Key{Framework: "dubbo", Interface: "demo.A", Group: "DEFAULT_GROUP"}, "", "demo.a.g---9default--1--9group.dubbo.isthmus"},
		"group with a capital":       {model.Key{Framework: "dubbo", Interface: "demo.A", Group: "myGroup"}, "", "demo.a.g-my--group.dubbo.isthmus"},
		"Chinese":                    {model.Key{Framework: "dubbo", Interface: "demo.订单"}, "", "demo.0-----68ba2--65355.dubbo.isthmus"},
		"no interface":               {model.Key{Framework: "dubbo"}, "", "0---0.dubbo.isthmus"},
		"nothing at all":             {model.Key{}, "", "0---0.0---0.isthmus"},
		"two dots":                   {model.Key{Framework: "dubbo", Interface: "a..B"}, "", "a.0---0.b.dubbo.isthmus"},
		"long label": {model.Key{Framework: "dubbo", Interface: "demo." + long}, "",
			"demo.abcdefghi-abcdefghi-abcdefghi-abcdefghi-abcdefghi-abcdefghi-abc.1---defghi-abcdefghi-abcdefghi.dubbo.isthmus"},
	} {
		t.Run(name, func(t *testing.T) {
			n := Naming{}
			got, reversible := n.host(c.key, c.p)
			if got != c.want || !reversible {
				t.Errorf("got %s, %v, want %s", got, reversible, c.want)
			}
			checkHost(t, got)
			if k, p, err := n.ParseHost(got); err != nil || k != c.key || p != c.p {
				t.Errorf("read back: %+v %q %v", k, p, err)
			}
		})
	}
}

func TestHostTooLong(t *testing.T) {
	n := Naming{Suffix: "legacy.example.com"}
	seen := map[string]bool{}
	for _, k := range []model.Key{
		{Framework: "dubbo", Interface: strings.Repeat("a", 300)},
		{Framework: "dubbo", Interface: strings.Repeat("a", 301)},
		{Framework: "dubbo", Interface: "a", Version: strings.Repeat("1", 300)},
		{Framework: "dubbo", Interface: "a", Group: strings.Repeat("1", 300)},
		{Framework: strings.Repeat("x", 300), Interface: "a"},
		{Framework: strings.Repeat("x", 70), Interface: strings.Repeat("a", 300)},
		{Framework: "dubbo", Interface: strings.Repeat("订", 100)},
	} {
		host, reversible := n.Host(k)
		checkHost(t, host)
		if reversible || seen[host] || !strings.HasPrefix(host, markHash) || !strings.HasSuffix(host, ".legacy.example.com") {
			t.Errorf("%.20v: %s, %v", k, host, reversible)
		}
		seen[host] = true
		if _, _, err := n.ParseHost(host); !errors.Is(err, ErrHashed) {
			t.Errorf("read back: %v", err)
		}
	}
}

func TestParseHostRefuses(t *testing.T) {
	for _, host := range []string{
		"", "isthmus", ".isthmus", "dubbo.isthmus", "demo.a.dubbo.example", "demo.A.dubbo.isthmus", "demo.a-.dubbo.isthmus",
		"demo.a--.dubbo.isthmus", "demo.a-1.dubbo.isthmus", "demo.a--5.dubbo.isthmus", "demo.a--5zz.dubbo.isthmus", "demo.a--541.dubbo.isthmus",
		"demo.0---a--2.dubbo.isthmus.", "a.b.spring.isthmus", "demo.a--9b.dubbo.isthmus", "1---a.dubbo.isthmus", "demo.0---1.dubbo.isthmus",
		"demo.a.v--1.v1.dubbo.isthmus", "demo.a_b.dubbo.isthmus", "port-20880.isthmus", strings.Repeat("a.", 500) + "dubbo.isthmus",
	} {
		if k, p, err := (Naming{}).ParseHost(host); err == nil {
			t.Errorf("%q is read as %+v %q", host, k, p)
		}
	}
}

// roundTrip holds the two promises: the host is one, and it is read back as the key it was made of. The second implies that
// different keys have different hosts, but for hashes.
func roundTrip(t *testing.T, n Naming, k model.Key, p model.Protocol) {
	t.Helper()
	host, reversible := n.host(k, p)
	checkHost(t, host)
	gotKey, gotProtocol, err := n.ParseHost(host)
	if reversible && (err != nil || gotKey != k || gotProtocol != p) {
		t.Errorf("%+v %q became %s, which is read as %+v %q, %v", k, p, host, gotKey, gotProtocol, err)
	}
	if !reversible && !errors.Is(err, ErrHashed) {
		t.Errorf("%+v %q became %s, which is read as %+v, %v", k, p, host, gotKey, err)
	}
}

func TestHostsAreReversible(t *testing.T) {
	// Everything up to three characters of those that matter, at each place.
	const letters = "aA1.-_$*v0é"
	var words []string
	for _, a := range letters {
		words = append(words, string(a))
		for _, b := range letters {
			words = append(words, string([]rune{a, b}))
			for _, c := range letters {
				words = append(words, string([]rune{a, b, c}))
			}
		}
	}
	hosts := map[string]model.Key{}
	for _, w := range words {
		for _, k := range []model.Key{
			{Framework: "dubbo", Interface: w}, {Framework: "spring", Interface: w}, {Framework: "dubbo", Interface: "x.Y", Version: w},
			{Framework: "dubbo", Interface: "x.Y", Group: w}, {Framework: w, Interface: "x.Y"}, {Framework: "dubbo", Interface: w, Version: w, Group: w},
			{Framework: "dubbo", Interface: strings.Repeat(w, 40)},
		} {
			roundTrip(t, Naming{}, k, "")
			host, _ := Naming{}.Host(k)
			if other, ok := hosts[host]; ok && other != k {
				t.Fatalf("%+v and %+v share %s", k, other, host)
			}
			hosts[host] = k
		}
		roundTrip(t, Naming{}, model.Key{Framework: "dubbo", Interface: "x.Y"}, model.Protocol(w))
	}
	if err := quick.Check(func(f, i, v, g string) bool {
		roundTrip(t, Naming{}, model.Key{Framework: f, Interface: i, Version: v, Group: g}, "")
		return !t.Failed()
	}, &quick.Config{MaxCount: 2000}); err != nil {
		t.Error(err)
	}
}

func FuzzHost(f *testing.F) {
	f.Add("dubbo", "demo.GreetService", "1.0.0", "g1", "")
	f.Add("sofa", "com.alipay.PayFacade", "1.0_beta", "*", "tri")
	f.Add("spring", "ORDER-SERVICE", "", "", "http")
	f.Add("dubbo", "demo.v1.V1$Inner_x", "SNAPSHOT", "订单", "p-")
	f.Fuzz(func(t *testing.T, framework, iface, version, group, protocol string) {
		roundTrip(t, Naming{}, model.Key{Framework: framework, Interface: iface, Version: version, Group: group}, model.Protocol(protocol))
	})
}

func FuzzParseHost(f *testing.F) {
	f.Add("demo.greet-service.v1-0-0.g-g1.dubbo.isthmus")
	f.Add("0-----9order--3--9service.spring.isthmus")
	f.Add("demo.abc.1---def.dubbo.isthmus")
	f.Fuzz(func(t *testing.T, host string) {
		k, p, err := Naming{}.ParseHost(host)
		if err != nil {
			return
		}
		if again, ok := (Naming{}).host(k, p); !ok || again != host {
			t.Errorf("%q is read as %+v %q, whose host is %q", host, k, p, again)
		}
	})
}
