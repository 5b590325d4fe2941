#include <gtest/gtest.h>

#include "agent/status_board.h"
#include "agent/text_file.h"
#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

StatusReport full_report() {
  StatusReport report;
  report.pid = 12;
  report.updated_us = 1'700'000'000'000'000;
  report.machine = *MachineId::parse("000102030405060708090a0b0c0d0e0f");
  report.name = "web1";
  report.server = "a:1";
  report.connected = true;
  report.state = State::creating_first_point;
  report.state_since_us = 1'600'000'000'000'000;
  report.done_bytes = 50;
  report.total_bytes = 200;
  report.rate_bytes_per_second = 10;
  report.backlog_bytes = 7;
  report.cause = "cause \"x\"";
  report.remedy = "remedy";
  report.disks = {{"/a", "a", -1, 0}, {"/b", "b", 3, 200}};
  report.tracking = "ebpf";
  report.tracking_since_us = 1'690'000'000'000'000;
  report.certificate_expires_us = 1'800'000'000'000'000;
  report.durable_epoch = EpochNumber(4);
  report.durable_consistency = "fuzzy";
  report.newest_point = EpochNumber(3);
  report.newest_point_us = 1'699'999'990'000'000;
  report.command = "run";
  report.application_point = EpochNumber(2);
  report.application_point_us = 1'699'000'000'000'000;
  report.hooks_failure = "pre-cut.d/10-db: exit status 1";
  report.hooks_failure_us = 1'699'900'000'000'000;
  report.rate_cap = RateCap{2.5, 1'700'000'500'000'000};
  report.alarm = "alarm";
  report.alarm_us = 1'650'000'000'000'000;
  return report;
}

TEST(StatusReport, ComesBackFromItsJson) {
  const StatusReport report = full_report();
  const std::string json = report_json(report, report.updated_us, std::nullopt);
  const auto again = parse_report(json, "status.json");
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_EQ(report_json(*again, report.updated_us, std::nullopt), json);
  EXPECT_EQ(json.find("running"), std::string::npos);
  EXPECT_NE(json.find("\"lag_seconds\": 10.0"), std::string::npos) << json;
  EXPECT_NE(json.find("\"eta_seconds\": 16"), std::string::npos) << json;
  EXPECT_NE(json.find("\"percent\": 25.0"), std::string::npos) << json;
}

TEST(StatusReport, UnknownIsNull) {
  const std::string json = report_json(StatusReport{}, 1, true);
  for (const char* key :
       {"percent", "eta_seconds", "lag_seconds", "durable_epoch", "newest_point", "newest_point_time", "alarm_time",
        "application_point", "application_point_time", "hooks_failure_time", "rate_limit_mib_s", "rate_limit_until"}) {
    EXPECT_NE(json.find("\"" + std::string(key) + "\": null"), std::string::npos) << key;
  }
}

TEST(StatusReport, DamageIsAnErrorNotACrash) {
  const std::string json = report_json(full_report(), 0, std::nullopt);
  for (std::size_t size = 0; size + 2 < json.size(); size += 7) {
    EXPECT_EQ(parse_report(json.substr(0, size), "status.json").error().code, Code::corrupt) << size;
  }
  EXPECT_FALSE(parse_report("{}", "status.json"));
  EXPECT_FALSE(parse_report("[]", "status.json"));
}

TEST(StatusReport, TextNamesWhatMatters) {
  const StatusReport report = full_report();
  const std::string text = report_text(report, report.updated_us, true);
  for (const char* part : {"web1", "creating-first-point", "cause \"x\"", "remedy", "epoch 3", "10s", "ALARM", "25.0 %",
                           "/b", "gapless since 2023-07-22"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
}

TEST(StatusReport, SaysWhyTheKernelDoesNotTrack) {
  StatusReport report = full_report();
  report.tracking = "digests";
  report.tracking_since_us = 0;
  report.tracking_reason = "only root can";
  EXPECT_NE(report_text(report, report.updated_us, true).find("compared by digests (only root can)"),
            std::string::npos);
  const std::string json = report_json(report, report.updated_us, true);
  EXPECT_NE(json.find("\"tracking_reason\": \"only root can\""), std::string::npos) << json;
  EXPECT_NE(json.find("\"tracking_since\": null"), std::string::npos) << json;
}

TEST(StatusBoard, WritesItsFileAndMeasuresARate) {
  const TempDir dir;
  ManualClock clock(1'700'000'000'000'000);
  {
    StatusBoard board({}, dir / "status.json", false, clock, nullptr);
    board.set_state(State::initial_sync);
    board.start_progress(1000, 101'000);
    clock.advance(std::chrono::seconds(2));
    board.set_progress(21'000);
    EXPECT_EQ(board.report().rate_bytes_per_second, 10'000U);
    EXPECT_EQ(board.report().backlog_bytes, 80'000U);
    EXPECT_EQ(board.message().state(), "initial-sync");
    board.set_state(State::stalled, "why", "what to do");
  }
  const auto report = parse_report(*read_text_file(dir / "status.json"), "status.json");
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->state, State::stalled);
  EXPECT_EQ(report->cause, "why");
  EXPECT_EQ(report->state_since_us, 1'700'000'002'000'000);
}

TEST(StatusBoard, ShowsTheRateOfTheHourAndUntilWhen) {
  ManualClock clock(*parse_rfc3339("2026-11-27T12:00:00Z"));
  StatusBoard board({}, {}, false, clock, nullptr);
  EXPECT_EQ(board.report().rate_cap, RateCap{});
  // Windows that begin at every quarter, so that the machine's time zone does not matter.
  std::vector<RateWindow> windows;
  for (int minute = 0; minute < 1440; minute += 15) windows.push_back({minute, minute + 15, 0x7f, 1.0 + minute});
  board.set_rate_schedule(RateSchedule(0, windows));
  const auto cap = board.report().rate_cap;
  ASSERT_TRUE(cap);
  EXPECT_EQ(cap->until_us, *parse_rfc3339("2026-11-27T12:15:00Z"));
  clock.advance(std::chrono::minutes(15));
  EXPECT_NE(board.report().rate_cap->limit_mib_s, cap->limit_mib_s);
}

TEST(StatusBoard, AHookThatFailedIsTheCauseUntilThereIsAnApplicationPoint) {
  ManualClock clock(1'000'000);
  StatusBoard board({}, {}, false, clock, nullptr);
  board.set_state(State::continuous);
  board.set_hooks_failure("pre-cut.d/10-db: exit status 1");
  EXPECT_EQ(board.report().cause, "the last application point: pre-cut.d/10-db: exit status 1");
  EXPECT_EQ(board.message().cause(), board.report().cause) << "the server is told as well";
  board.set_state(State::backlog, "something worse");
  EXPECT_EQ(board.report().cause, "something worse");
  board.set_state(State::continuous);
  board.set_application_point(EpochNumber(4), 77);
  EXPECT_EQ(board.report().cause, "");
  EXPECT_EQ(board.report().hooks_failure, "");
  EXPECT_EQ(board.report().application_point.value(), 4U);
}

TEST(StatusBoard, ThrottleIsTheCauseWhileItLastsAndThereIsNoOther) {
  ManualClock clock(1'700'000'000'000'000);
  StatusBoard board({}, {}, false, clock, nullptr);
  board.set_connected(true, "a:1");
  board.set_state(State::initial_sync);
  board.set_throttle(std::chrono::seconds(3), "the staging disk is slow");
  EXPECT_EQ(board.report().cause, "the server asks to wait: the staging disk is slow");
  EXPECT_FALSE(board.report().remedy.empty());
  EXPECT_EQ(board.message().cause(), board.report().cause);
  board.set_state(State::stalled, "a disk is away", "attach it");
  EXPECT_EQ(board.report().cause, "a disk is away") << "what is nearer comes first";
  board.set_state(State::initial_sync);
  board.set_throttle(std::chrono::seconds(0), {});
  EXPECT_EQ(board.report().cause, "");
  board.set_throttle(std::chrono::seconds(3), "the staging disk is slow");
  board.set_connected(false, "a:1");
  EXPECT_EQ(board.report().cause, "") << "with the connection it is over";
  board.set_connected(true, "a:1");
  board.set_throttle(std::chrono::seconds(3), "the staging disk is slow");
  clock.advance(std::chrono::seconds(6));
  EXPECT_EQ(board.report().cause, "") << "a server that says no more";
}

}  // namespace
}  // namespace tidemark::agent
