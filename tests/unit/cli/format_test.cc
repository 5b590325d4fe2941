#include "cli/format.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/commands.h"
#include "cli/progress.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;

TEST(Format, SizesHaveThreeDigitsAndAUnit) {
  EXPECT_EQ(human_size(0), "0 B");
  EXPECT_EQ(human_size(1023), "1023 B");
  EXPECT_EQ(human_size(1024), "1 KiB");
  EXPECT_EQ(human_size(1536), "1.5 KiB");
  EXPECT_EQ(human_size((1 << 20) - 1), "1 MiB");
  EXPECT_EQ(human_size(150ULL << 30), "150 GiB");
  EXPECT_EQ(human_size(UINT64_MAX), "16 EiB");
}

TEST(Format, DurationsHaveTwoUnits) {
  EXPECT_EQ(human_duration(-3), "0 s");
  EXPECT_EQ(human_duration(59), "59 s");
  EXPECT_EQ(human_duration(60), "1 min");
  EXPECT_EQ(human_duration(3599), "59 min 59 s");
  EXPECT_EQ(human_duration(7800), "2 h 10 min");
  EXPECT_EQ(human_duration(12 * 86400 + 4 * 3600 + 59), "12 d 4 h");
}

TEST(Format, TimesAreUtcAndSaySo) {
  const WallMicros time = 1795169703'999'999LL;
  EXPECT_EQ(human_time(time), "2026-11-20 10:15:03Z");
  EXPECT_EQ(human_age(time, time + 185'000'000), "3 min 5 s ago");
  EXPECT_EQ(human_age(time, time - 3540'000'000), "in 59 min");
}

TEST(Format, DurationsAreReadWithTheirUnit) {
  EXPECT_EQ(parse_duration("90s").value(), 90u);
  EXPECT_EQ(parse_duration("2d").value(), 172'800u);
  for (const char* text :
       {"", "5", "m", "0h", "-1h", "1.5h", "1h ", "1hh", "99999999999999999999s", "18446744073709551615d"})
    EXPECT_FALSE(parse_duration(text)) << text;
}

TEST(Format, ATableAlignsItsColumns) {
  Table table({{"NAME"}, {"SIZE", Table::Align::right}, {"WHY"}});
  table.add({"a", "1 KiB", ""});
  table.add({"büro", "150 GiB", "x"});
  std::ostringstream out;
  table.print(out);
  EXPECT_EQ(out.str(),
            "NAME     SIZE  WHY\n"
            "a       1 KiB\n"
            "büro  150 GiB  x\n");
}

TEST(Format, AFieldOfAnotherTypeIsAbsent) {
  const json object = {{"n", -1}, {"f", 1.5}, {"s", 3}, {"null", nullptr}, {"t", "soon"}};
  EXPECT_EQ(number_at(object, "n"), std::nullopt);
  EXPECT_EQ(number_at(object, "f"), 1u);
  EXPECT_EQ(number_at(object, "null"), std::nullopt);
  EXPECT_EQ(text_at(object, "s"), "");
  EXPECT_EQ(time_at(object, "t"), std::nullopt);
  EXPECT_TRUE(array_at(object, "s").empty());
  EXPECT_EQ(text_at(json::array(), "s"), "");
}

TEST(Progress, ShowsShareRateAndWhatIsLeft) {
  ManualClock clock(0);
  std::ostringstream out;
  Progress progress(out, true, clock);
  progress.start("vda", 100 << 20);
  clock.advance(std::chrono::seconds(2));
  progress.set(50 << 20);
  EXPECT_NE(out.str().find("vda [############............]  50 %  50 MiB of 100 MiB  25 MiB/s  2 s left"),
            std::string::npos)
      << out.str();
  const std::size_t drawn = out.str().size();
  progress.set(51 << 20);
  EXPECT_EQ(out.str().size(), drawn) << "not more than ten times a second";
  std::ostringstream silent;
  Progress(silent, false, clock).set(1);
  EXPECT_EQ(silent.str(), "");
}

}  // namespace
}  // namespace tidemark::cli
