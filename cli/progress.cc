#include "cli/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <ostream>

#include "cli/format.h"

namespace tidemark::cli {
namespace {
constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr std::size_t kBarWidth = 24;
}  // namespace

void Progress::start(std::string label, std::uint64_t total_bytes) {
  finish();
  label_ = std::move(label);
  total_ = total_bytes;
  done_ = 0;
  started_ = next_draw_ = clock_.monotonic();
}

void Progress::set(std::uint64_t done_bytes) {
  done_ = done_bytes;
  if (!enabled_ || clock_.monotonic() < next_draw_) return;
  next_draw_ = clock_.monotonic() + kRedraw;
  draw();
}

void Progress::draw() {
  const double share = total_ == 0 ? 1.0 : std::min(1.0, static_cast<double>(done_) / static_cast<double>(total_));
  const auto filled = static_cast<std::size_t>(share * kBarWidth);
  const double elapsed = std::chrono::duration<double>(clock_.monotonic() - started_).count();
  std::string line =
      fmt::format("\r{} [{}{}] {:3.0f} %  {} of {}", label_, std::string(filled, '#'),
                  std::string(kBarWidth - filled, '.'), share * 100, human_size(done_), human_size(total_));
  if (elapsed >= 1 && done_ > 0) {
    const double rate = static_cast<double>(done_) / elapsed;
    line += fmt::format("  {}/s", human_size(static_cast<std::uint64_t>(rate)));
    if (done_ < total_)
      line += fmt::format("  {} left",
                          human_duration(static_cast<std::int64_t>(static_cast<double>(total_ - done_) / rate)));
  }
  to_ << line << "\x1b[K" << std::flush;
  drawn_ = true;
}

void Progress::finish() {
  if (drawn_) to_ << "\r\x1b[K" << std::flush;
  drawn_ = false;
}

}  // namespace tidemark::cli
