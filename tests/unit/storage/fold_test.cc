#include "storage/fold.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "base/random.h"
#include "storage/segment_kind.h"

namespace tidemark::storage {
namespace {

constexpr std::uint32_t kGranules = limits::kRegionGranules;

// What a granule shows: the extent it comes from; nullopt: it was never written.
using Shown = std::optional<std::tuple<Lsn, EpochNumber, SegmentId, std::uint32_t, std::uint32_t, std::uint32_t>>;
using Picture = std::array<Shown, kGranules>;

Shown shown_by(Lsn lsn, EpochNumber epoch, SegmentId segment, const DeltaExtent& extent) {
  return std::tuple(lsn, epoch, segment, extent.offset, extent.first, extent.count);
}

DeltaExtent raw(std::uint32_t first, std::uint32_t count, std::uint32_t offset) {
  return {.first = first,
          .count = count,
          .encoding = wire::Encoding::raw,
          .offset = offset,
          .stored_size = count * static_cast<std::uint32_t>(limits::kGranuleSize)};
}

DeltaExtent zeroes(std::uint32_t first, std::uint32_t count) {
  return {.first = first, .count = count, .encoding = wire::Encoding::zero, .offset = 0, .stored_size = 0};
}

// Everything that was ever written, oldest first; the model writes it granule by granule.
using History = std::vector<Delta>;

Picture picture_at(const History& history, Lsn point) {
  Picture picture;
  for (const Delta& delta : history) {
    if (delta.lsn > point) continue;
    for (const DeltaExtent& extent : delta.extents) {
      for (std::uint32_t i = 0; i < extent.count; ++i) {
        picture[extent.first + i] = shown_by(delta.lsn, delta.epoch, delta.segment, extent);
      }
    }
  }
  return picture;
}

// The same of versions, newest first: what lies on top counts.
Picture picture_at(const std::vector<Version>& versions, Lsn point) {
  Picture picture;
  for (const Version& version : versions) {
    if (version.lsn > point) continue;
    for (std::uint32_t i = 0; i < version.extent.count; ++i) {
      Shown& granule = picture[version.extent.first + i];
      if (!granule) granule = shown_by(version.lsn, version.epoch, version.segment, version.extent);
    }
  }
  return picture;
}

std::vector<Version> versions_of(const History& history) {
  std::vector<Version> versions;
  for (auto delta = history.rbegin(); delta != history.rend(); ++delta) append_versions(*delta, versions);
  return versions;
}

std::vector<RegionEntry> fold(std::vector<Version> versions, const std::vector<Lsn>& points) {
  drop_hidden(versions, points);
  return encode_versions(versions, points);
}

// Keys are read newest first, as the index has them.
std::vector<Version> decode(const std::vector<RegionEntry>& entries) {
  std::vector<Version> versions;
  Delta delta;
  for (const RegionEntry& entry : entries) {
    for (std::string_view rest = entry.value; !rest.empty();) {
      const Status taken = take_delta(rest, entry.key, delta);
      EXPECT_TRUE(taken) << taken.error().message();
      if (!taken) return versions;
      append_versions(delta, versions);
    }
  }
  return versions;
}

struct Drawn {
  History history;
  std::vector<Lsn> points;  // commits; the last one is behind everything
  std::uint64_t next_lsn = 1;
  std::uint64_t next_epoch = 1;
  std::uint32_t next_offset = 4096;
};

// Epochs of a few records each, every one ended by its commit. Extents of one record may overlap.
void draw_epochs(Random& random, std::uint64_t epochs, Drawn& to) {
  const std::uint32_t spread = random.chance(0.5) ? 24 : kGranules;  // narrow: much is overwritten
  for (std::uint64_t i = 0; i < epochs; ++i, ++to.next_epoch) {
    for (std::uint64_t records = random.below(4); records > 0; --records) {
      Delta& delta = to.history.emplace_back();
      delta.lsn = Lsn(to.next_lsn);
      to.next_lsn += 1 + random.below(3);
      delta.epoch = EpochNumber(to.next_epoch);
      delta.segment = random.chance(0.2) ? cold_segment(1 + random.below(3)) : SegmentId(1 + to.next_lsn / 20);
      for (std::uint64_t extents = 1 + random.below(5); extents > 0; --extents) {
        const auto first = static_cast<std::uint32_t>(random.below(spread));
        const bool zero = random.chance(0.25);
        const std::uint32_t most = std::min<std::uint32_t>(zero ? kGranules : 16, kGranules - first);
        const auto count = static_cast<std::uint32_t>(1 + random.below(most));
        delta.extents.push_back(zero ? zeroes(first, count) : raw(first, count, to.next_offset));
        to.next_offset += 48 + delta.extents.back().stored_size;
      }
    }
    to.points.push_back(Lsn(to.next_lsn++));
  }
}

// Some of the commits stay points; the newest always does.
std::vector<Lsn> some_points(Random& random, const std::vector<Lsn>& all) {
  std::vector<Lsn> kept;
  const double chance = random.chance(0.3) ? 1.0 : 0.4;
  for (const Lsn point : all) {
    if (point == all.back() || random.chance(chance)) kept.push_back(point);
  }
  return kept;
}

void for_each_history(const std::function<void(Random&, const Drawn&)>& check) {
  for (std::uint64_t seed = 1; seed <= 400 && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    Drawn drawn;
    draw_epochs(random, 1 + random.below(14), drawn);
    check(random, drawn);
  }
}

TEST(Fold, KeepsWhatTwoPointsShowAndDropsWhatLiesBetween) {
  // Three writes to granule 5; the point between the second and the third is gone.
  const History history = {{Lsn(1), EpochNumber(1), SegmentId(1), {raw(5, 1, 100)}},
                           {Lsn(3), EpochNumber(2), SegmentId(1), {raw(5, 1, 200)}},
                           {Lsn(5), EpochNumber(3), SegmentId(1), {raw(5, 1, 300)}}};
  const std::vector<Lsn> points = {Lsn(2), Lsn(6)};
  auto versions = versions_of(history);
  drop_hidden(versions, points);
  ASSERT_EQ(versions.size(), 2u);
  EXPECT_EQ(versions[0].lsn, Lsn(5));
  EXPECT_EQ(versions[1].lsn, Lsn(1)) << "it keeps its own LSN";
}

TEST(Fold, PutsWhatLiesBetweenTwoPointsUnderOneKey) {
  const History history = {{Lsn(1), EpochNumber(1), SegmentId(1), {raw(0, 1, 100)}},
                           {Lsn(4), EpochNumber(2), SegmentId(1), {raw(1, 1, 200)}},
                           {Lsn(7), EpochNumber(3), SegmentId(2), {raw(2, 1, 300)}}};
  const auto apart = fold(versions_of(history), {Lsn(2), Lsn(5), Lsn(8)});
  ASSERT_EQ(apart.size(), 3u);
  const auto together = fold(versions_of(history), {Lsn(2), Lsn(8)});
  ASSERT_EQ(together.size(), 2u);
  EXPECT_EQ(together[0].key, Lsn(7));
  EXPECT_EQ(together[1].key, Lsn(1));
  const auto read = decode(together);
  ASSERT_EQ(read.size(), 3u);
  EXPECT_EQ(read[1].lsn, Lsn(4));
  EXPECT_EQ(read[1].epoch, EpochNumber(2));
}

TEST(Fold, OfOverlapsWithinARecordTheLaterExtentIsShown) {
  const History history = {{Lsn(1), EpochNumber(1), SegmentId(1), {raw(0, 4, 100), zeroes(2, 1), raw(8, 1, 200)}},
                           {Lsn(2), EpochNumber(1), SegmentId(1), {raw(8, 2, 300)}}};
  auto versions = versions_of(history);
  drop_hidden(versions, std::vector{Lsn(3)});
  ASSERT_EQ(versions.size(), 3u) << "the block at 8 of the first record is nowhere to be seen";
  EXPECT_EQ(versions[0].extent, raw(8, 2, 300));
  EXPECT_EQ(versions[1].extent, zeroes(2, 1)) << "zeroes hide too";
  EXPECT_EQ(versions[2].extent, raw(0, 4, 100));
  EXPECT_EQ(versions[2].shown.to_ullong(), 0b1011u) << "all of it but what the zeroes hide";
}

TEST(Fold, EveryPointShowsTheSameAsBefore) {
  for_each_history([](Random& random, const Drawn& drawn) {
    const auto points = some_points(random, drawn.points);
    const auto folded = decode(fold(versions_of(drawn.history), points));
    for (const Lsn point : points) {
      ASSERT_EQ(picture_at(folded, point), picture_at(drawn.history, point)) << "point " << point.value();
    }
  });
}

TEST(Fold, KeepsExactlyWhatSomePointShows) {
  for_each_history([](Random& random, const Drawn& drawn) {
    const auto points = some_points(random, drawn.points);
    std::map<Shown, std::bitset<kGranules>> expected;
    for (const Lsn point : points) {
      const Picture picture = picture_at(drawn.history, point);
      for (std::uint32_t granule = 0; granule < kGranules; ++granule) {
        if (picture[granule]) expected[picture[granule]].set(granule);
      }
    }
    auto versions = versions_of(drawn.history);
    drop_hidden(versions, points);
    std::set<Shown> kept;
    for (const Version& version : versions) {
      const Shown id = shown_by(version.lsn, version.epoch, version.segment, version.extent);
      ASSERT_TRUE(expected.contains(id)) << "no point shows LSN " << version.lsn.value();
      if (version.extent.encoding != wire::Encoding::zero) {
        ASSERT_EQ(version.shown, expected[id]);
      }
      kept.insert(id);
    }
    ASSERT_EQ(kept.size(), expected.size());
  });
}

TEST(Fold, FoldingWhatIsFoldedChangesNothing) {
  for_each_history([](Random& random, const Drawn& drawn) {
    const auto points = some_points(random, drawn.points);
    const auto once = fold(versions_of(drawn.history), points);
    ASSERT_EQ(fold(decode(once), points), once);
    // One key between two points at most.
    ASSERT_LE(once.size(), points.size());
    for (std::size_t i = 1; i < once.size(); ++i) ASSERT_LT(once[i].key, once[i - 1].key);
  });
}

TEST(Fold, OneFoldAfterAnotherIsLikeOneOfAll) {
  for_each_history([](Random& random, const Drawn& drawn) {
    // A point less each time, down to the newest.
    auto points = some_points(random, drawn.points);
    auto entries = fold(versions_of(drawn.history), points);
    while (points.size() > 1) {
      points.erase(points.begin() + static_cast<std::ptrdiff_t>(random.below(points.size() - 1)));
      entries = fold(decode(entries), points);
      ASSERT_EQ(entries, fold(versions_of(drawn.history), points));
    }
    // And more history, with its points, on top of what is folded.
    Drawn longer = drawn;
    draw_epochs(random, 1 + random.below(3), longer);
    points.insert(points.end(), longer.points.begin() + static_cast<std::ptrdiff_t>(drawn.points.size()),
                  longer.points.end());
    std::vector<Version> versions =
        versions_of({longer.history.begin() + static_cast<std::ptrdiff_t>(drawn.history.size()), longer.history.end()});
    const auto before = decode(entries);
    versions.insert(versions.end(), before.begin(), before.end());
    ASSERT_EQ(fold(std::move(versions), points), fold(versions_of(longer.history), points));
  });
}

}  // namespace
}  // namespace tidemark::storage
