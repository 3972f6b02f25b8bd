package main

import (
	"math/bits"
	"time"
)

// fine is the number of buckets to an octave of latencies, so that a bucket is at most 1/64 of what is in it wide.
const fine = 64

// latencies is a histogram of microseconds: exact up to 2*fine µs, then with buckets of 1/fine of an octave, up to nine
// minutes; what is longer is in the last one.
type latencies [24 * fine]uint32

// bucket returns the index of the bucket for us.
func bucket(us uint64) int {
	if us < 2*fine {
		return int(us)
	}
	shift := bits.Len64(us) - bits.Len64(2*fine-1)
	return min(shift*fine+int(us>>shift), len(latencies{})-1)
}

// value returns the middle of a bucket, in microseconds.
func value(bucket int) uint64 {
	if bucket < 2*fine {
		return uint64(bucket)
	}
	shift := bucket/fine - 1
	low := uint64(bucket-shift*fine) << shift
	return low + 1<<shift/2
}

func (l *latencies) add(d time.Duration) { l[bucket(uint64(max(d, 0).Microseconds()))]++ }

func (l *latencies) merge(other *latencies) {
	for i, n := range other {
		l[i] += n
	}
}

// quantile returns the p-quantile (0 to 1), 0 without samples.
func (l *latencies) quantile(p float64) time.Duration {
	var total uint64
	for _, n := range l {
		total += uint64(n)
	}
	if total == 0 {
		return 0
	}
	rank := uint64(p * float64(total-1))
	var seen uint64
	for i, n := range l {
		if seen += uint64(n); seen > rank {
			return time.Duration(value(i)) * time.Microsecond
		}
	}
	return 0
}
