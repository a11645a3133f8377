"""Chat templates of real families, word for word where it matters."""

RAISE_ON_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{{- raise_exception('System role not supported') -}}{%- endif -%}"
)
ALTERNATE = (
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('Conversation roles must alternate user/assistant/...') -}}{%- endif -%}"
)
LLAMA2 = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set loop_messages = messages[1:] -%}{%- set system_message = messages[0]['content'] -%}"
    "{%- else -%}{%- set loop_messages = messages -%}{%- set system_message = false -%}"
    "{%- endif -%}{%- for message in loop_messages -%}"
    + ALTERNATE
    + "{%- if loop.index0 == 0 and system_message != false -%}"
    "{%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] -%}"
    "{%- else -%}{%- set content = message['content'] -%}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + content.strip() + ' ' + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)
LLAMA3 = (
    "{{- bos_token -}}"
    "{%- if not date_string is defined -%}"
    "{%- if strftime_now is defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}"
    "{%- else -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}{%- endif -%}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set system_message = messages[0]['content'] | trim -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system_message = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' -}}"
    "{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' -}}"
    "{{- system_message + '<|eot_id|>' -}}"
    "{%- for message in turns -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}"
    "{{- (message['content'] | trim) + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
MISTRAL_V1 = (
    "{{- bos_token -}}{%- for message in messages -%}"
    + ALTERNATE
    + "{%- if message['role'] == 'user' -%}"
    "{{- '[INST] ' + message['content'] + ' [/INST]' -}}"
    "{%- else -%}{{- message['content'] + eos_token + ' ' -}}{%- endif -%}"
    "{%- endfor -%}"
)
MISTRAL_V3 = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set system_message = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set turns = messages -%}{%- endif -%}"
    "{{- bos_token -}}{%- for message in turns -%}"
    + ALTERNATE
    + "{%- if message['role'] == 'user' -%}"
    "{%- if loop.first and system_message is defined -%}"
    "{{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' -}}"
    "{%- else -%}{{- '[INST] ' + message['content'] + '[/INST]' -}}{%- endif -%}"
    "{%- else -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
GEMMA = (
    "{{- bos_token -}}"
    + RAISE_ON_SYSTEM
    + "{%- for message in messages -%}"
    + ALTERNATE
    + "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
PHI3 = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)
_CHATML_TURN = "'<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n'"
_TO_GENERATE = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
TOOLS_LIKE_QWEN = (
    "{%- if tools -%}{{- '<|im_start|>system\\nYou may call:' -}}"
    "{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'tool' -%}"
    "{{- '<|im_start|>user\\n<tool_response>\\n' + message.content -}}"
    "{{- '\\n</tool_response><|im_end|>\\n' -}}"
    "{%- elif message.tool_calls -%}{{- '<|im_start|>assistant\\n' + message.content -}}"
    "{%- for call in message.tool_calls -%}"
    '{{- \'\\n<tool_call>{"name": "\' + call.function.name + \'", "arguments": \' -}}'
    "{{- (call.function.arguments | tojson) + '}</tool_call>' -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- elif message.role in ['system', 'user', 'assistant'] -%}"
    "{{- " + _CHATML_TURN + " -}}{%- endif -%}{%- endfor -%}" + _TO_GENERATE
)
"""Tools as JSON lines, every call a JSON object, a tool's answer in a user's turn."""
REASONS_LIKE_QWEN = (
    "{%- set ns = namespace(last=0) -%}{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for message in messages -%}"
    "{%- if message.reasoning_content and loop.index0 > ns.last -%}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + message.reasoning_content.strip('\\n') -}}"
    "{{- '\\n</think>\\n\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- else -%}{{- " + _CHATML_TURN + " -}}{%- endif -%}{%- endfor -%}" + _TO_GENERATE
)
"""The reasoning after the last question alone."""
TOOLS_LIKE_LLAMA = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{%- if message.role == 'user' and loop.first and tools -%}"
    "{{- '<|start_header_id|>user<|end_header_id|>\\n\\nAnswer with a call of:\\n' -}}"
    "{%- for tool in tools -%}{{- (tool | tojson(indent=4)) + '\\n' -}}{%- endfor -%}"
    "{{- message.content + '<|eot_id|>' -}}"
    "{%- elif 'tool_calls' in message -%}"
    "{%- if message.tool_calls | length != 1 -%}{{- raise_exception('one call at once') -}}"
    "{%- endif -%}{%- set call = message.tool_calls[0].function -%}"
    '{{- \'<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "\' + call.name -}}'
    "{{- '\", \"parameters\": ' + (call.arguments | tojson) + '}<|eot_id|>' -}}"
    "{%- elif message.role == 'tool' -%}"
    "{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' -}}"
    "{{- (message.content | tojson) + '<|eot_id|>' -}}"
    "{%- else -%}{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}"
    "{{- (message.content | trim) + '<|eot_id|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
"""Tools in the first question; one call a message, without text beside it; answers as JSON."""
TOOLS_LIKE_MISTRAL = (
    "{%- set asked = messages | selectattr('role', 'equalto', 'user') | list -%}"
    "{{- bos_token -}}{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}"
    "{%- if tools and message == asked[-1] -%}"
    "{{- '[TOOLS] ' + (tools | tojson) + '[/TOOLS]' -}}{%- endif -%}"
    "{{- '[INST] ' + message.content + '[/INST]' -}}"
    "{%- elif message.tool_calls is defined -%}{{- '[TOOL_CALLS] [' -}}"
    "{%- for call in message.tool_calls -%}"
    "{%- if call.id | length != 9 -%}{{- raise_exception('ids have 9 letters') -}}{%- endif -%}"
    "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' -}}"
    "{{- ', ' if not loop.last -}}{%- endfor -%}{{- ']' + eos_token -}}"
    "{%- elif message.role == 'tool' -%}{{- '[RESULT] ' + message.content + '[/RESULT]' -}}"
    "{%- elif message.role == 'assistant' -%}{{- ' ' + message.content + eos_token -}}"
    "{%- else -%}{{- raise_exception('only user, assistant and tool') -}}{%- endif -%}"
    "{%- endfor -%}"
)
"""Tools before the last question, calls with ids of nine letters; no system message."""
CALLS_AS_TEXT = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' and message.content is none -%}"
    "{{- '<|im_start|>assistant\\n' -}}{%- for call in message.tool_calls -%}"
    "{{- call.function.name + '\\n' + call.function.arguments + '\\n' -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- elif message.content is not none -%}{{- " + _CHATML_TURN + " -}}"
    "{%- endif -%}{%- endfor -%}" + _TO_GENERATE
)
"""Arguments as text, in messages without content."""
