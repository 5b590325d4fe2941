// An answer of JSON objects, one a line, as it comes.
#pragma once

#include <cstddef>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "base/status.h"
#include "cli/format.h"
#include "cli/point.h"

namespace tidemark::cli {

class JsonLines {
 public:
  // An error of `take` ends the request. A line {"error": ...} is what the server could not do, and becomes that error.
  using Take = std::function<Status(const nlohmann::json&)>;
  explicit JsonLines(Take take) : take_(std::move(take)) {}

  Status feed(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) {
      if (byte != std::byte{'\n'}) {
        if (line_.size() == kLineMax) return odd_answer("a line of the answer is too long");
        line_ += static_cast<char>(byte);
        continue;
      }
      TIDEMARK_TRY(finish());
    }
    return {};
  }
  // After the last byte: a line may have no end.
  Status finish() {
    if (line_.empty()) return {};
    const auto said = nlohmann::json::parse(line_, nullptr, false);
    line_.clear();
    if (!said.is_object()) return odd_answer("a line of the answer is not JSON");
    if (const auto error = said.find("error"); error != said.end())
      return fail(text_at(*error, "code") == "corrupt" ? Code::corrupt : Code::io, text_at(*error, "object"),
                  text_at(*error, "what"), text_at(*error, "remedy"));
    return take_(said);
  }

 private:
  static constexpr std::size_t kLineMax = 16 << 20;
  Take take_;
  std::string line_;
};

}  // namespace tidemark::cli
