#include "nbd/handshake.h"

#include <algorithm>

namespace tidemark::nbd {

namespace {

std::string_view text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Takes fields off the front of an option's data; once something is missing, everything is.
class Fields {
 public:
  explicit Fields(std::span<const std::byte> data) : rest_(data) {}
  template <std::integral T>
  T number() {
    if (rest_.size() < sizeof(T)) {
      short_ = true;
      return 0;
    }
    const T value = get_big<T>(rest_.data());
    rest_ = rest_.subspan(sizeof(T));
    return value;
  }
  std::string_view string() {
    const auto size = number<std::uint32_t>();
    if (short_ || size > rest_.size() || size > kNameMax) {
      short_ = true;
      return {};
    }
    const auto value = text(rest_.first(size));
    rest_ = rest_.subspan(size);
    return value;
  }
  bool cut_off() const { return short_; }
  bool whole() const { return !short_ && rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
  bool short_ = false;
};

}  // namespace

Handshake::Handshake(Tls tls) : tls_(tls) {
  if (tls == Tls::active) {  // the greeting was outside
    greeted_ = true;
    no_zeroes_ = true;
    return;
  }
  put_big(output_, kMagic);
  put_big(output_, kOptionMagic);
  put_big(output_, static_cast<std::uint16_t>(kFixedNewstyle | kNoZeroes));
}

void Handshake::reply_header(OptionReply kind, std::size_t size) {
  put_big(output_, kOptionReplyMagic);
  put_big(output_, code_);
  put_big(output_, static_cast<std::uint32_t>(kind));
  put_big(output_, static_cast<std::uint32_t>(size));
}

void Handshake::reply(OptionReply kind, std::string_view data) {
  reply_header(kind, data.size());
  output_ += data;
}

Handshake::Step Handshake::step(std::span<const std::byte>& input) {
  const auto take = [&](std::size_t until) {  // false: there is less than that
    const std::size_t n = std::min(until - std::min(until, pending_.size()), input.size());
    pending_ += text(input.first(n));
    input = input.subspan(n);
    return pending_.size() >= until;
  };
  while (!ended_) {
    if (skip_ != 0) {
      const std::size_t n = std::min(skip_, input.size());
      input = input.subspan(n);
      skip_ -= n;
      if (skip_ != 0) return Step::need_input;
    }
    if (!greeted_) {
      if (!take(4)) return Step::need_input;
      const auto flags = get_big<std::uint32_t>(reinterpret_cast<const std::byte*>(pending_.data()));
      pending_.clear();
      if ((flags & ~std::uint32_t{kFixedNewstyle | kNoZeroes}) != 0 || (flags & kFixedNewstyle) == 0) break;
      no_zeroes_ = (flags & kNoZeroes) != 0;
      greeted_ = true;
    }
    if (!take(kHeader)) return Step::need_input;
    const auto* header = reinterpret_cast<const std::byte*>(pending_.data());
    const std::size_t size = get_big<std::uint32_t>(header + 12);
    code_ = get_big<std::uint32_t>(header + 8);
    if (get_big<std::uint64_t>(header) != kOptionMagic) break;
    if (size > kOptionMax) {
      if (size > kOptionSkipMax || ++options_ > kOptionsMax || code_ == static_cast<std::uint32_t>(Option::export_name))
        break;
      reply(OptionReply::too_big, "the option is too long");
      pending_.clear();
      skip_ = size;
      continue;
    }
    if (!take(kHeader + size)) return Step::need_input;
    if (++options_ > kOptionsMax) break;
    const std::string whole = std::exchange(pending_, {});
    const Step next = option(std::as_bytes(std::span(whole)).subspan(kHeader));
    if (next != Step::need_input) {
      ended_ = next == Step::close;
      return next;
    }
  }
  ended_ = true;
  return Step::close;
}

// Step::need_input: it is answered.
Handshake::Step Handshake::option(std::span<const std::byte> data) {
  const auto option = static_cast<Option>(code_);
  if (option == Option::abort) {
    reply(OptionReply::ack);
    return Step::close;
  }
  if (option == Option::starttls) return starttls(data);
  if (tls_ == Tls::required) {
    if (option == Option::export_name) return Step::close;  // there is no way to say why
    reply(OptionReply::tls_required, "this server speaks of its exports under TLS only");
    return Step::need_input;
  }
  switch (option) {
    case Option::export_name:
      if (data.size() > kNameMax) return Step::close;
      name_ = text(data);
      return Step::find;
    case Option::list:
      if (data.empty()) return Step::list;
      reply(OptionReply::invalid, "this option has no data");
      return Step::need_input;
    case Option::info:
    case Option::go: return info(data);
    case Option::structured_reply:
      if (!data.empty()) {
        reply(OptionReply::invalid, "this option has no data");
      } else {
        structured_ = true;
        reply(OptionReply::ack);
      }
      return Step::need_input;
    case Option::list_meta_context:
    case Option::set_meta_context: return meta_context(data);
    default: reply(OptionReply::unsupported, "this server does not know the option"); return Step::need_input;
  }
}

Handshake::Step Handshake::starttls(std::span<const std::byte> data) {
  if (!data.empty()) {
    reply(OptionReply::invalid, "this option has no data");
  } else if (tls_ == Tls::active) {
    reply(OptionReply::invalid, "this is under TLS already");
  } else if (tls_ == Tls::none) {
    reply(OptionReply::policy, "this socket does without TLS");
  } else {
    reply(OptionReply::ack);
    return Step::start_tls;
  }
  return Step::need_input;
}

Handshake::Step Handshake::info(std::span<const std::byte> data) {
  Fields fields(data);
  const auto name = fields.string();
  const auto count = fields.number<std::uint16_t>();
  wants_name_ = wants_description_ = false;
  for (unsigned i = 0; i < count && !fields.cut_off(); ++i) {
    const auto wanted = static_cast<Info>(fields.number<std::uint16_t>());
    wants_name_ |= wanted == Info::name;
    wants_description_ |= wanted == Info::description;
  }
  if (!fields.whole()) {
    reply(OptionReply::invalid, "the option's data is not what it should be");
    return Step::need_input;
  }
  name_ = name;
  return Step::find;
}

Handshake::Step Handshake::meta_context(std::span<const std::byte> data) {
  const bool set = static_cast<Option>(code_) == Option::set_meta_context;
  Fields fields(data);
  const auto name = fields.string();
  const auto count = fields.number<std::uint32_t>();
  bool wanted = count == 0 && !set;
  for (std::uint32_t i = 0; i < count && !fields.cut_off(); ++i) {
    const auto query = fields.string();
    wanted |= query == kAllocation || (!set && query == "base:");
  }
  if (set) allocation_ = false;
  if (!fields.whole()) {
    reply(OptionReply::invalid, "the option's data is not what it should be");
    return Step::need_input;
  }
  if (set && !structured_) {
    reply(OptionReply::invalid, "structured replies come first");
    return Step::need_input;
  }
  if (wanted) {
    std::string context;
    put_big(context, set ? kAllocationId : std::uint32_t{0});
    context += kAllocation;
    reply(OptionReply::meta_context, context);
    if (set) {
      allocation_ = true;
      allocation_name_ = name;
    }
  }
  reply(OptionReply::ack);
  return Step::need_input;
}

std::uint16_t Handshake::transmission_flags(const ExportInfo& info) const {
  unsigned flags = kHasFlags | kSendFlush | kSendFua | kCanMultiConn | kSendCache;
  flags |= info.read_only ? kReadOnly : kSendTrim | kSendWriteZeroes | kSendFastZero;
  if (structured_) flags |= kSendDf;
  return static_cast<std::uint16_t>(flags);
}

bool Handshake::found(const ExportInfo& info) {
  const auto option = static_cast<Option>(code_);
  if (allocation_ && allocation_name_ != name_ && option != Option::info) allocation_ = false;
  if (option == Option::export_name) {
    put_big(output_, info.size);
    put_big(output_, transmission_flags(info));
    if (!no_zeroes_) output_.append(124, '\0');
    return true;
  }
  std::string part;
  put_big(part, static_cast<std::uint16_t>(Info::export_));
  put_big(part, info.size);
  put_big(part, transmission_flags(info));
  reply(OptionReply::info, part);
  part.clear();
  put_big(part, static_cast<std::uint16_t>(Info::block_size));
  for (const std::uint32_t size : {kBlockMin, kBlockPreferred, kRequestMax}) put_big(part, size);
  reply(OptionReply::info, part);
  const auto text_info = [&](Info kind, const std::string& value) {
    part.clear();
    put_big(part, static_cast<std::uint16_t>(kind));
    part += value;
    reply(OptionReply::info, part);
  };
  if (wants_name_) text_info(Info::name, info.name);
  if (wants_description_) text_info(Info::description, info.description);
  reply(OptionReply::ack);
  return option == Option::go;
}

void Handshake::refused(const Error& why) {
  if (static_cast<Option>(code_) == Option::export_name) {  // it can only be told by closing
    ended_ = true;
    return;
  }
  OptionReply kind = OptionReply::policy;
  if (why.code == Code::not_found || why.code == Code::invalid_argument) kind = OptionReply::unknown;
  if (why.code == Code::cancelled || why.code == Code::unavailable) kind = OptionReply::shutdown;
  reply(kind, why.message().substr(0, kNameMax));
}

void Handshake::listed(std::span<const ListedExport> exports) {
  for (const ListedExport& one : exports) {
    if (one.name.size() > kNameMax || one.description.size() > kNameMax) continue;
    std::string data;
    put_big(data, static_cast<std::uint32_t>(one.name.size()));
    data += one.name;
    data += one.description;
    reply(OptionReply::server, data);
  }
  reply(OptionReply::ack);
}

}  // namespace tidemark::nbd
